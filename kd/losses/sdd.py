"""Scale Decoupled Distillation (Wei, Luo & Luo, 2024)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._labels import shares
from kd.losses._maps import answers
from kd.losses.dkd import dkd_of_images


def sdd_loss(
    maps_s: Tensor,
    maps_t: Tensor,
    head_s: nn.Module,
    head_t: nn.Module,
    target: Tensor,
    temperature: float = 4.0,
    form: Literal["dkd", "kd"] = "dkd",
    target_weight: float = 1.0,
    non_target_weight: float = 8.0,
    scales: Sequence[int] = (1, 2, 4),
    complementary: float = 2.0,
) -> Tensor:
    """T^2 times DKD or the KL between the two nets' answers for each region, mean over the regions.

    Wei, Luo & Luo 2024 (arXiv 2403.13512), section 3. Scale m cuts the last maps into m x m
    regions. Each net's last layer answers for a region's mean, so at scale 1 for the image. A
    region for which the teacher is right where it is wrong for the image, or the other way round,
    counts `complementary` times; all others count once. In the authors' code the 2 x 2 regions are
    means of the 4 x 4 ones, which is the same where the side is a multiple of 4.

    Args:
        maps_s: last maps of the student before global average pooling, [B, D, H, W].
        maps_t: those of the teacher, [B, E, h, w]; detached.
        head_s: last layer of the student; the loss trains it too.
        head_t: last layer of the teacher.
        target: class labels, int64 [B], or soft labels [B, C]. Soft labels give the mean of the
            loss over target classes, weighted by the label.
        temperature: T > 0.
        form: `dkd` is the paper's SD-DKD, `kd` its SD-KD.
        target_weight: of DKD's first part.
        non_target_weight: of its second part.
        scales: cells per side, each > 0.

    Returns:
        scalar >= 0; 0 where the two agree, maps and last layers.
    """
    whole = answers(F.adaptive_avg_pool2d(maps_t.detach(), 1), head_t).argmax(2)  # [B, 1]
    s = _regions(maps_s, head_s, scales)
    t = _regions(maps_t.detach(), head_t, scales)
    chosen = t.argmax(2)  # [B, regions]
    flat_s = s.flatten(0, 1) / temperature
    flat_t = t.flatten(0, 1) / temperature
    log_p_s = F.log_softmax(flat_s, dim=1)
    log_p_t = F.log_softmax(flat_t, dim=1)
    divergence = F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(1)
    share, labels = shares(target, s[:, 0])
    total = maps_s.new_zeros(())
    for k in range(labels.shape[1]):
        label = labels[:, k, None].expand_as(chosen)
        differs = ((chosen == label) != (whole == label)).to(share)
        weight = share[:, k, None] * (1 + (complementary - 1) * differs)
        if form == "dkd":
            divergence = dkd_of_images(
                flat_s, flat_t, label.reshape(-1, 1), target_weight, non_target_weight
            )
        total = total + (weight.flatten() * divergence).mean()
    return total * temperature**2


def _regions(maps: Tensor, head: nn.Module, scales: Sequence[int]) -> Tensor:
    """Return the answers for all regions of all scales, [B, regions, C]."""
    return torch.cat([answers(F.adaptive_avg_pool2d(maps, m), head) for m in scales], dim=1)
