"""Maps of two nets made comparable: what the methods on features share."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_map(feature: Tensor) -> Tensor:
    """A tap as maps [B, C, H, W]: vectors [B, C] are maps of one pixel, tokens [B, N, C] those of a square picture.

    Of tokens the largest square number is taken from the end: class tokens come first.
    """
    if feature.ndim == 2:
        return feature[:, :, None, None]
    if feature.ndim == 3:
        side = isqrt(feature.shape[1])
        return feature[:, -side * side :].transpose(1, 2).reshape(len(feature), -1, side, side)
    return feature


def channels(shape: tuple[int, ...]) -> int:
    """Of a tap's shape without the batch, as `as_map` takes it."""
    return shape[-1] if len(shape) == 2 else shape[0]


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, C, H, W] of two nets, the larger averaged down to the smaller's height and width."""
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    small = (F.adaptive_avg_pool2d(m, size) if m.shape[2:] != size else m for m in (a, b))
    return next(small), next(small)


def last_maps(
    feats_s: list[Tensor], feats_t: list[Tensor], count: int | None = 1
) -> list[tuple[Tensor, Tensor]]:
    """The last `count` pairs of taps, all for None, as maps of equal size; the teacher's without gradient."""
    pairs = list(zip(feats_s, feats_t, strict=True))
    return [
        same_size(as_map(s), as_map(t.detach())) for s, t in (pairs[-count:] if count else pairs)
    ]


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """Vectors along `dim` of length 1; a vector of zeros stays one, and has no gradient."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / norm.where(norm > 1e-12, torch.inf)


class Norm(nn.BatchNorm2d):
    """Batch normalisation that takes its running statistics where a batch has one value for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> the same shape."""
        if x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


def connector(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution and batch norm: from the student's channels to the teacher's."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), Norm(outputs))
