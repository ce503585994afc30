"""Variational Information Distillation for Knowledge Transfer (Ahn et al., 2019)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import as_map, channels, same_size

FLOOR = 1e-5  # of the variance


def vid_loss(means: list[Tensor], feats_t: list[Tensor], variances: list[Tensor]) -> Tensor:
    """1/2 of the mean of (t - mean)^2 / variance + log variance, summed over the taps; in nats, without its constant.

    Ahn et al. 2019, section 2: the teacher's maps are Gaussian about a mean that the student's predict, with a
    variance for each channel, which is learned.

    Args:
        means: predicted from the student's taps, [B, C, H, W] each.
        feats_t: the teacher's taps, the same shapes; no gradient flows to it.
        variances: [C] each, > 0.

    Returns:
        scalar, below 0 where the variance is small. Its minimum is not 0.
    """
    total = means[0].new_zeros(())
    for mean, t, variance in zip(means, feats_t, variances, strict=True):
        wide = variance[:, None, None]
        total = total + 0.5 * ((mean - t.detach()).pow(2) / wide + wide.log()).mean()
    return total


class VID(nn.Module):
    """The loss with what predicts the means (three 1x1 convolutions with ReLU) and the variances.

    Args:
        variance: of each channel at the start, > 1e-5.
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        variance: float = 5.0,
    ) -> None:
        super().__init__()
        if variance <= FLOOR:
            raise ValueError(f"variance: found {variance}, accepted is a number above {FLOOR}")
        sizes = [(channels(s), channels(t)) for s, t in zip(shapes_s, shapes_t, strict=True)]
        self.regressors = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(c_s, c_t, 1, bias=False), nn.ReLU()),
                *(nn.Conv2d(c_t, c_t, 1, bias=False), nn.ReLU()),
                nn.Conv2d(c_t, c_t, 1, bias=False),
            )
            for c_s, c_t in sizes
        )
        start = math.log(math.expm1(variance - FLOOR))  # where the softplus is that
        self.raw = nn.ParameterList(nn.Parameter(torch.full((c_t,), start)) for _, c_t in sizes)

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """`vid_loss` of all pairs of taps; the larger map of a pair is averaged down. A scalar."""
        pairs = [same_size(as_map(s), as_map(t)) for s, t in zip(feats_s, feats_t, strict=True)]
        means = [predict(s) for predict, (s, _) in zip(self.regressors, pairs, strict=True)]
        return vid_loss(means, [t for _, t in pairs], [F.softplus(raw) + FLOOR for raw in self.raw])
