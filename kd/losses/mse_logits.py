"""Regression on logits: Do Deep Nets Really Need to be Deep? (Ba & Caruana, 2014)."""

import torch.nn.functional as F
from torch import Tensor


def mse_logits_loss(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """(s - t)^2, mean over the batch and the classes, in squared logits.

    Ba & Caruana 2014, eq. 1, take half the sum over the classes. Kim et al. 2021, "Comparing
    Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation", eq. 3, take
    the sum, but their code the mean. The mean is used here: the weight then means the same for any
    number of classes.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.

    Returns:
        scalar >= 0; 0 where the two are equal.
    """
    return F.mse_loss(logits_s, logits_t.detach())


mse_logits_loss.multilabel = True  # type: ignore[attr-defined]
