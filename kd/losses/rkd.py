"""Relational Knowledge Distillation (Park et al., 2019)."""

import torch.nn.functional as F
from torch import Tensor

from kd.losses._maps import unit


def rkd_loss(
    pooled_s: Tensor, pooled_t: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """distance_weight * RKD-D + angle_weight * RKD-A, mean Huber distances of image relations.

    Park et al. 2019, section 3.2: the relations are the distances of all pairs, divided by their
    mean, and the cosines of the angles of all triplets. As in the authors' code the mean runs over
    all B^2 and B^3, where equal images count as 0. The mean distance is over distances above 0.

    Args:
        pooled_s: student embeddings, [B, D].
        pooled_t: teacher embeddings of any width, [B, D_t]; detached.
        distance_weight, angle_weight: >= 0; 0 skips that part. The angles need memory of order B^3.

    Returns:
        scalar >= 0; 0 where the two agree up to a factor. The loss compares the images of a batch,
        on each device separately: ranks do not share batches.
    """
    total = pooled_s.new_zeros(())
    fixed = pooled_t.detach()
    if distance_weight:
        total = total + distance_weight * F.smooth_l1_loss(_distances(pooled_s), _distances(fixed))
    if angle_weight:
        total = total + angle_weight * F.smooth_l1_loss(_angles(pooled_s), _angles(fixed))
    return total


def _distances(x: Tensor) -> Tensor:
    squared = (x[:, None] - x[None]).pow(2).sum(2)
    apart = squared > 0
    distance = squared.where(apart, 1.0).sqrt().where(apart, 0.0)  # the root has no gradient at 0
    return distance / (distance.sum() / apart.sum().clamp(min=1)).where(apart.any(), 1.0)


def _angles(x: Tensor) -> Tensor:
    toward = unit(x[None] - x[:, None], dim=2)
    return toward @ toward.transpose(1, 2)
