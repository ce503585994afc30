"""Knowledge Distillation with the Reused Teacher Classifier (Chen et al., 2022)."""

from torch import Tensor

from kd.losses._maps import as_map, same_size


def simkd_loss(feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
    """Mean squared difference of the last pair of feature maps.

    Chen et al. 2022, section 3. The student's last map comes from its projector, which is part of
    the net. The teacher's layers after that map follow it: see `kd.nets.simkd.SimKD`.

    Args:
        feats_s: student feature maps, the last [B, C, H, W].
        feats_t: teacher feature maps, the last with the same channel count; detached. The larger
            map is average-pooled.

    Returns:
        scalar >= 0; 0 where the two agree.

    Raises:
        ValueError: for unequal channel counts.
    """
    s, t = same_size(as_map(feats_s[-1]), as_map(feats_t[-1].detach()))
    if s.shape != t.shape:
        raise ValueError(
            f"simkd: the projector gives {s.shape[1]} channels, the teacher has {t.shape[1]}"
        )
    return (s - t).pow(2).mean()
