"""Variational Information Distillation for Knowledge Transfer (Ahn et al., 2019)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import as_map, channels, same_size

FLOOR = 1e-5  # lower bound of the variance


def vid_loss(means: list[Tensor], feats_t: list[Tensor], variances: list[Tensor]) -> Tensor:
    """Half the mean of (t - mean)^2 / variance + log variance, summed over layers; in nats.

    Ahn et al. 2019, section 2: the teacher's maps are Gaussian. The student's maps predict the
    mean; one variance per channel is learned.

    Args:
        means: predictions from the student's maps, [B, C, H, W] each.
        feats_t: teacher maps of the same shapes; detached.
        variances: [C] each, > 0.

    Returns:
        scalar, negative where the variance is small. Its minimum is not 0.
    """
    total = means[0].new_zeros(())
    for mean, t, variance in zip(means, feats_t, variances, strict=True):
        wide = variance[:, None, None]
        total = total + 0.5 * ((mean - t.detach()).pow(2) / wide + wide.log()).mean()
    return total


class VID(nn.Module):
    """The loss with predictors of the means (three 1x1 convolutions, ReLU) and the variances.

    Args:
        variance: initial variance of each channel, > 1e-5.
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
        start = math.log(math.expm1(variance - FLOOR))  # inverse of the softplus
        self.raw = nn.ParameterList(nn.Parameter(torch.full((c_t,), start)) for _, c_t in sizes)

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """Compute `vid_loss` over all pairs of maps [B, C, H, W] at the smaller size; a scalar."""
        pairs = [same_size(as_map(s), as_map(t)) for s, t in zip(feats_s, feats_t, strict=True)]
        means = [predict(s) for predict, (s, _) in zip(self.regressors, pairs, strict=True)]
        return vid_loss(means, [t for _, t in pairs], [F.softplus(raw) + FLOOR for raw in self.raw])
