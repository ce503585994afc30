"""Feature maps of two nets made comparable; shared by the feature losses."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_map(feature: Tensor) -> Tensor:
    """Reshape features to maps [B, C, H, W].

    Vectors [B, C] become 1x1 maps and tokens [B, N, C] a square map. Class tokens come first, so
    the square is cut from the end of the tokens.
    """
    if feature.ndim == 2:
        return feature[:, :, None, None]
    if feature.ndim == 3:
        side = isqrt(feature.shape[1])
        return feature[:, -side * side :].transpose(1, 2).reshape(len(feature), -1, side, side)
    return feature


def channels(shape: tuple[int, ...]) -> int:
    """Return the channel count of a feature shape without batch, as `as_map` reads it."""
    return shape[-1] if len(shape) == 2 else shape[0]


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps [B, C, H, W] to the height and width of the smaller."""
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    small = (F.adaptive_avg_pool2d(m, size) if m.shape[2:] != size else m for m in (a, b))
    return next(small), next(small)


def last_maps(
    feats_s: list[Tensor], feats_t: list[Tensor], count: int | None = 1
) -> list[tuple[Tensor, Tensor]]:
    """Return the last `count` pairs of maps [B, C, H, W] at equal size; the teacher's detached."""
    pairs = list(zip(feats_s, feats_t, strict=True))
    return [
        same_size(as_map(s), as_map(t.detach())) for s, t in (pairs[-count:] if count else pairs)
    ]


def answers(maps: Tensor, head: nn.Module, bias: bool = True) -> Tensor:
    """Apply the last layer to each pixel of maps [B, C, H, W]; logits [B, H * W, classes].

    Args:
        head: a linear layer, or a convolution of size 1.
        bias: whether to add its bias.
    """
    weight = head.weight
    shift = head.bias
    assert isinstance(weight, Tensor)
    added = shift.to(maps) if bias and isinstance(shift, Tensor) else None
    return F.linear(maps.flatten(2).transpose(1, 2), weight.flatten(1).to(maps), added)


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """Scale vectors of x [B, ...] along `dim` to length 1; a zero vector stays, without
    gradient.
    """
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / norm.where(norm > 1e-12, torch.inf)


class Norm(nn.BatchNorm2d):
    """Batch norm that uses running statistics when a batch has one value per channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, H, W]; the shape is kept."""
        if x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


def connector(inputs: int, outputs: int) -> nn.Sequential:
    """Build a 1x1 convolution with batch norm that maps student channels to teacher channels."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), Norm(outputs))
