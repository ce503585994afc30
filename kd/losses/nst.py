"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang & Wang, 2017)."""

from torch import Tensor

from kd.losses._maps import last_maps, unit


def nst_loss(feats_s: list[Tensor], feats_t: list[Tensor], pairs: int | None = None) -> Tensor:
    """Squared maximum mean discrepancy of the nets' channels, batch mean, summed over layers.

    Huang & Wang 2017, section 4, with the polynomial kernel k(x, y) = (x . y)^2. The samples are
    the channel maps, scaled to length 1. The loss is mean k(t, t) + mean k(s, s) - 2 mean k(s, t)
    over all pairs of channels.

    Args:
        feats_s: student feature maps, [B, C, H, W] each.
        feats_t: teacher feature maps with any number of channels; detached. The larger map of a
            pair is average-pooled.
        pairs: number of last pairs to use; None for all.

    Returns:
        scalar >= 0; 0 where the two agree.
    """
    total = feats_s[0].new_zeros(())
    for s, t in last_maps(feats_s, feats_t, pairs):
        a = unit(s.flatten(2), dim=2)
        b = unit(t.flatten(2), dim=2)
        total = total + _kernel(b, b) + _kernel(a, a) - 2 * _kernel(a, b)
    return total


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2)).pow(2).mean()
