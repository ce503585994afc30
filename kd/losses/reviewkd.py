"""Distilling Knowledge via Knowledge Review (Chen et al., 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import Norm, as_map, channels


def reviewkd_loss(maps_s: list[Tensor], maps_t: list[Tensor]) -> Tensor:
    """Hierarchical context loss: mean squared differences of maps, full and pooled to 4, 2, 1.

    Chen et al. 2021, section 3.4: each pyramid level has half the weight of the level above. The
    sum is divided by the sum of weights. Levels not smaller than the map are left out.

    Args:
        maps_s: fused student maps, [B, C, H, W] each.
        maps_t: teacher maps of the same shapes; detached.

    Returns:
        scalar >= 0; at equal maps 0.
    """
    total = maps_s[0].new_zeros(())
    for s, t in zip(maps_s, maps_t, strict=True):
        levels = [(s - t.detach()).pow(2).mean()]
        for size in (4, 2, 1):
            if size < s.shape[2]:
                levels.append(F.adaptive_avg_pool2d(s - t.detach(), size).pow(2).mean())
        weights = [0.5**k for k in range(len(levels))]
        total = total + sum(w * level for w, level in zip(weights, levels, strict=True)) / sum(
            weights
        )
    return total


class Fusion(nn.Module):
    """Attention-based fusion of a student map with fused deeper maps (Chen et al. 2021, Fig.
    3a).
    """

    def __init__(self, inputs: int, middle: int, outputs: int, fuses: bool) -> None:
        super().__init__()
        self.inward = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), Norm(middle))
        self.outward = nn.Sequential(
            nn.Conv2d(middle, outputs, 3, padding=1, bias=False), Norm(outputs)
        )
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuses else None
        for convolution in (self.inward[0], self.outward[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # type: ignore[arg-type]

    def forward(
        self, x: Tensor, deeper: Tensor | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Fuse x [B, inputs, H, W] with the deeper map [B, C, h, w].

        Returns:
            a map of `size` with the teacher's channels, and the map for the next fusion.
        """
        x = self.inward(x)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            share = self.attention(torch.cat([x, deeper], dim=1)).sigmoid()
            x = x * share[:, :1] + deeper * share[:, 1:]
        x = F.interpolate(x, size) if x.shape[2:] != size else x
        return self.outward(x), x


class ReviewKD(nn.Module):
    """The loss with its fusions, from the deepest layer up, which is the embedding as a 1x1 map.

    As in the authors' code the teacher's maps come before the last ReLU and the student's after it.

    Args:
        most: largest number of middle channels of a fusion; below it the width of the student's
            embedding counts.
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        width_s: int,
        width_t: int,
        most: int = 512,
    ) -> None:
        super().__init__()
        sizes = [(channels(s), channels(t)) for s, t in zip(shapes_s, shapes_t, strict=True)] + [
            (width_s, width_t)
        ]
        middle = min(most, width_s)
        self.fusions = nn.ModuleList(
            Fusion(s, middle, t, fuses=i > 0) for i, (s, t) in enumerate(reversed(sizes))
        )

    def forward(
        self, feats_s: list[Tensor], preacts_t: list[Tensor], pooled_s: Tensor, pooled_t: Tensor
    ) -> Tensor:
        """Compute `reviewkd_loss` over all maps [B, C, H, W] and the embeddings [B, D]; a
        scalar.
        """
        theirs = [as_map(t) for t in (*preacts_t, pooled_t)][::-1]
        ours = [as_map(s) for s in (*feats_s, pooled_s)][::-1]
        fused: list[Tensor] = []
        deeper: Tensor | None = None
        for fuse, s, t in zip(self.fusions, ours, theirs, strict=True):
            out, deeper = fuse(s, deeper, tuple(t.shape[2:]))
            fused.append(out)
        return reviewkd_loss(fused, theirs)
