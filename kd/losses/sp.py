"""Similarity-Preserving Knowledge Distillation (Tung & Mori, 2019)."""

from torch import Tensor

from kd.losses._maps import unit


def sp_loss(feats_s: list[Tensor], feats_t: list[Tensor], pairs: int | None = 1) -> Tensor:
    """|| G_t - G_s ||_F^2 / B^2, summed over the pairs of taps; G the images' similarities, its rows of length 1.

    Tung & Mori 2019, eq. 2 to 4: G = F F^T of the flattened taps F [B, ...].

    Args:
        feats_s: the student's taps, [B, ...] each.
        feats_t: the teacher's, of any shape; no gradient flows to it.
        pairs: how many of the last pairs are taken; the authors take the last. None for all.

    Returns:
        scalar >= 0; 0 where the two agree. It compares the images of a batch with each other, on each device alone:
        ranks do not share their batches.
    """
    both = list(zip(feats_s, feats_t, strict=True))[-(pairs or 0) :]
    total = feats_s[0].new_zeros(())
    for s, t in both:
        total = total + (_similarity(t.detach()) - _similarity(s)).pow(2).mean()
    return total


def _similarity(feature: Tensor) -> Tensor:
    flat = feature.flatten(1)
    return unit(flat @ flat.T)
