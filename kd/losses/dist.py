"""Knowledge Distillation from A Stronger Teacher (Huang et al., 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8  # added to the product of the two lengths, as in the authors' code


def dist_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    temperature: float = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> Tensor:
    """inter_weight * (1 - correlation of rows) + intra_weight * (1 - correlation of columns),
    means; no unit.

    Huang et al. 2022, eq. 8 to 10, where the weights are called beta and gamma. The correlation is
    Pearson's, between the two nets' probabilities: over the classes for each image, and over the
    batch for each class. There is no factor T^2, as in the paper (appendix A.1); the authors' code
    has one. At T = 1 both are the same. As in the code 1e-8 is added to the product of the two
    lengths, so columns on which the teacher is very sure count less.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        temperature: T > 0.

    Returns:
        scalar from 0 to 2 * (inter_weight + intra_weight); 0 where the two agree up to a constant
        per image. A constant row or column has correlation 0. So a batch of one gives
        `intra_weight` for the second part, and two classes give no gradient for the first. The
        second part depends on the batch size per device.
    """
    p_s = F.softmax(logits_s / temperature, dim=1)
    p_t = F.softmax(logits_t.detach() / temperature, dim=1)
    inter = 1 - _correlation(p_s, p_t, dim=1).mean()
    intra = 1 - _correlation(p_s, p_t, dim=0).mean()
    return inter_weight * inter + intra_weight * intra


def _correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim) / (lengths + EPSILON)
