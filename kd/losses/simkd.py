"""Knowledge Distillation with the Reused Teacher Classifier (Chen et al., 2022)."""

from torch import Tensor

from kd.losses._maps import as_map, same_size


def simkd_loss(feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
    """Mean squared difference of the last pair of taps.

    Chen et al. 2022, section 3. The student's last tap is its projector, which is a part of the net, and what follows
    is what the teacher does after its last maps: see `kd.nets.simkd.SimKD`.

    Args:
        feats_s: the student's taps, the last [B, C, H, W].
        feats_t: the teacher's, with as many channels; the larger map is averaged down. No gradient flows to it.

    Returns:
        scalar >= 0; 0 where the two agree.

    Raises:
        ValueError: for unequal numbers of channels.
    """
    s, t = same_size(as_map(feats_s[-1]), as_map(feats_t[-1].detach()))
    if s.shape != t.shape:
        raise ValueError(
            f"simkd: the projector gives {s.shape[1]} channels, the teacher has {t.shape[1]}"
        )
    return (s - t).pow(2).mean()
