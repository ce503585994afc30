"""Paying More Attention to Attention (Zagoruyko & Komodakis, 2017)."""

import torch
from torch import Tensor

from kd.losses._maps import last_maps, unit


def at_loss(
    feats_s: list[Tensor], feats_t: list[Tensor], form: str = "authors", power: float = 2.0
) -> Tensor:
    """Distance of the normalised attention maps of the two nets, summed over layers; no unit.

    The attention map of an image is the channel mean of |f|^power, scaled to length 1. Zagoruyko &
    Komodakis 2017, eq. 2, use the Euclidean distance, here averaged over the batch and without beta
    / 2. The authors' code averages the squared difference over batch and pixels. That is H * W
    times smaller and vanishes faster near 0.

    Args:
        feats_s: student feature maps, [B, C, H, W] each.
        feats_t: teacher feature maps with any number of channels; detached. The larger map of a
            pair is average-pooled.
        form: `authors` or `paper`.

    Returns:
        scalar >= 0; 0 where the two agree. 1x1 maps are all alike and give 0.

    Raises:
        ValueError: for an unknown form.
    """
    if form not in ("authors", "paper"):
        raise ValueError(f"form: found {form!r}, accepted are authors, paper")
    total = feats_s[0].new_zeros(())
    for s, t in last_maps(feats_s, feats_t, None):
        difference = _attention(s, power) - _attention(t, power)
        if form == "authors":
            total = total + difference.pow(2).mean()
        else:
            total = total + torch.linalg.vector_norm(difference, dim=1).mean()
    return total


def _attention(maps: Tensor, power: float) -> Tensor:
    return unit(maps.abs().pow(power).mean(1).flatten(1))
