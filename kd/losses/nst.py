"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang & Wang, 2017)."""

from torch import Tensor

from kd.losses._maps import last_maps, unit


def nst_loss(feats_s: list[Tensor], feats_t: list[Tensor], pairs: int | None = None) -> Tensor:
    """Squared maximum mean discrepancy of the two nets' channels, mean over the batch, summed over the taps.

    Huang & Wang 2017, section 4, with the polynomial kernel k(x, y) = (x . y)^2: the channels' maps, each of length
    1, are samples of where a net looks; mean k(t, t) + mean k(s, s) - 2 mean k(s, t) over all pairs of channels.

    Args:
        feats_s: the student's taps, [B, C, H, W] each.
        feats_t: the teacher's, of any number of channels; the larger map of a pair is averaged down. No gradient flows
            to it.
        pairs: how many of the last pairs are taken; None for all.

    Returns:
        scalar >= 0; 0 where the two agree.
    """
    total = feats_s[0].new_zeros(())
    for s, t in last_maps(feats_s, feats_t, pairs):
        a, b = unit(s.flatten(2), dim=2), unit(t.flatten(2), dim=2)
        total = total + _kernel(b, b) + _kernel(a, a) - 2 * _kernel(a, b)
    return total


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2)).pow(2).mean()
