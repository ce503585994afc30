"""Paying More Attention to Attention (Zagoruyko & Komodakis, 2017)."""

import torch
from torch import Tensor

from kd.losses._maps import last_maps, unit


def at_loss(
    feats_s: list[Tensor], feats_t: list[Tensor], form: str = "authors", power: float = 2.0
) -> Tensor:
    """Sum over the taps of the distance of the two nets' attention maps, each of length 1; no unit.

    The attention map of an image is the mean over the channels of |f|^power. Zagoruyko & Komodakis 2017: the paper
    (eq. 2, without its beta / 2) has the Euclidean distance, here meaned over the batch; the authors' code the squared
    difference meaned over the batch and the map, which is H * W times smaller and falls off near 0.

    Args:
        feats_s: the student's taps, [B, C, H, W] each.
        feats_t: the teacher's, of any number of channels; the larger map of a pair is averaged down. No gradient flows
            to it.
        form: `authors` or `paper`.

    Returns:
        scalar >= 0; 0 where the two agree. Maps of one pixel are all alike, and give 0.

    Raises:
        ValueError: for a form that is not among these.
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
