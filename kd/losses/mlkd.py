"""Multi-Level Logit Distillation (Jin, Wang & Lin, 2023)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mlkd_loss(
    logits_s: Tensor, logits_t: Tensor, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)
) -> Tensor:
    """Over the temperatures T, the sum of T^2 * KL, |G_t - G_s|^2 / B and |M_t - M_s|^2 / C.

    Jin et al. 2023, eq. 3 to 10. With P [B, C] the probabilities at T: KL between the rows, mean over the batch, in
    nats (instances); G = P P^T, which images are alike (batch); M = P^T P, which classes are confused (classes); norms
    are of all entries. T^2 and the temperatures are those of the authors' code.

    The paper is followed where the code departs from it: the code multiplies the finished averages by masks of sure
    images and classes, and leaves some of the parts that it computes out of the sum. The code also takes a weakly and
    a strongly augmented view of each image; here there is the one view of the recipe.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C]; no gradient flows to it.
        temperatures: each > 0.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant per image. It depends on the batch, so on its size.
    """
    batch, classes = logits_s.shape
    total = torch.zeros((), dtype=logits_s.dtype, device=logits_s.device)
    for temperature in temperatures:
        log_p_s = F.log_softmax(logits_s / temperature, dim=1)
        p_s, p_t = log_p_s.exp(), F.softmax(logits_t.detach() / temperature, dim=1)
        total = total + F.kl_div(log_p_s, p_t, reduction="batchmean") * temperature**2
        total = total + (p_t @ p_t.T - p_s @ p_s.T).square().sum() / batch
        total = total + (p_t.T @ p_t - p_s.T @ p_s).square().sum() / classes
    return total
