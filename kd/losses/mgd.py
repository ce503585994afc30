"""Masked Generative Distillation (Yang et al., 2022)."""

import torch
from torch import Tensor, nn

from kd.losses._maps import as_map, channels, same_size


def mgd_loss(restored: Tensor, feats_t: Tensor) -> Tensor:
    """Squared difference of restored student map and teacher map; sum per image, batch mean.

    Yang et al. 2022, section 3.

    Args:
        restored: output of the generator for the masked student map, [B, C, H, W].
        feats_t: teacher map of the same shape; detached.

    Returns:
        scalar >= 0; at equal maps 0.
    """
    return (restored - feats_t.detach()).pow(2).flatten(1).sum(1).mean()


class MGD(nn.Module):
    """The loss with its generator (two 3x3 convolutions, ReLU between), on the last maps.

    For classification whole channels are masked (section 3.2 of the paper). Where channel counts
    differ, a 1x1 convolution comes first.

    Args:
        masked: share of the channels, in [0, 1).
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        masked: float = 0.15,
    ) -> None:
        super().__init__()
        if not 0 <= masked < 1:
            raise ValueError(f"masked: found {masked}, accepted is a number from 0 to below 1")
        self.masked = masked
        own = channels(shapes_s[-1])
        wide = channels(shapes_t[-1])
        self.align = nn.Conv2d(own, wide, 1) if own != wide else nn.Identity()
        self.generate = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1)
        )

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor], index: Tensor) -> Tensor:
        """Compute `mgd_loss` of maps [B, C, H, W], with one mask per image by rank of `index`
        [B].
        """
        s, t = same_size(as_map(feats_s[-1]), as_map(feats_t[-1]))
        s = self.align(s)
        draws = torch.rand(s.shape[:2], device=s.device)[index.argsort().argsort()]
        kept = (draws >= self.masked).to(s)[:, :, None, None]
        return mgd_loss(self.generate(s * kept), t)
