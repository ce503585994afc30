"""Correlation Congruence for Knowledge Distillation (Peng et al., 2019)."""

import math

import torch
from torch import Tensor

from kd.losses._maps import unit


def cc_loss(pooled_s: Tensor, pooled_t: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Mean squared difference of the two nets' correlations of images, over all B^2 pairs.

    Peng et al. 2019, section 3: the correlation of unit embeddings x, y is a Gaussian kernel. It is
    computed by its Taylor series, sum over p to `order` of
    exp(-2 gamma) (2 gamma)^p / p! (x . y)^p.

    Args:
        pooled_s: student embeddings, [B, D].
        pooled_t: teacher embeddings of any width, [B, D_t]; detached.
        gamma: width of the kernel, > 0.
        order: order P of the series, >= 0.

    Returns:
        scalar >= 0; 0 where the two agree. The loss compares the images of a batch, on each device
        separately: ranks do not share batches.
    """
    return (
        (_correlation(pooled_s, gamma, order) - _correlation(pooled_t.detach(), gamma, order))
        .pow(2)
        .mean()
    )


def _correlation(pooled: Tensor, gamma: float, order: int) -> Tensor:
    x = unit(pooled)
    cosine = x @ x.T
    powers = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(powers).sum(0)
