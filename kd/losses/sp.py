"""Similarity-Preserving Knowledge Distillation (Tung & Mori, 2019)."""

from torch import Tensor

from kd.losses._maps import unit


def sp_loss(feats_s: list[Tensor], feats_t: list[Tensor], pairs: int | None = 1) -> Tensor:
    """|| G_t - G_s ||_F^2 / B^2, summed over the pairs of layers.

    Tung & Mori 2019, eq. 2 to 4: G = F F^T, with rows scaled to length 1, holds the similarities of
    the images; F are the flattened features [B, ...].

    Args:
        feats_s: student features, [B, ...] each.
        feats_t: teacher features, [B, ...] of any shape; detached.
        pairs: number of last pairs to use; the authors use one. None for all.

    Returns:
        scalar >= 0; 0 where the two agree. The loss compares the images of a batch, on each device
        separately: ranks do not share batches.
    """
    both = list(zip(feats_s, feats_t, strict=True))[-(pairs or 0) :]
    total = feats_s[0].new_zeros(())
    for s, t in both:
        total = total + (_similarity(t.detach()) - _similarity(s)).pow(2).mean()
    return total


def _similarity(feature: Tensor) -> Tensor:
    flat = feature.flatten(1)
    return unit(flat @ flat.T)
