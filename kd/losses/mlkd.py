"""Multi-Level Logit Distillation (Jin, Wang & Lin, 2023)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mlkd_loss(
    logits_s: Tensor, logits_t: Tensor, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)
) -> Tensor:
    """Sum over temperatures T of T^2 * KL, |G_t - G_s|^2 / B and |M_t - M_s|^2 / C.

    Jin et al. 2023, eq. 3 to 10. P [B, C] are the probabilities at T. KL is taken between rows,
    mean over the batch, in nats (instances). G = P P^T says which images are alike (batch); M = P^T
    P which classes are confused (classes). Norms are Frobenius. T^2 and the temperatures are from
    the authors' code.

    Where paper and code differ this follows the paper. The code multiplies the averages by masks of
    sure images and classes, and leaves some parts out of the sum. It also takes a weakly and a
    strongly augmented view of each image; here there is the one view of the recipe.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        temperatures: each > 0.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant per image. It depends on the batch size.
    """
    batch, classes = logits_s.shape
    total = torch.zeros((), dtype=logits_s.dtype, device=logits_s.device)
    for temperature in temperatures:
        log_p_s = F.log_softmax(logits_s / temperature, dim=1)
        p_s = log_p_s.exp()
        p_t = F.softmax(logits_t.detach() / temperature, dim=1)
        total = total + F.kl_div(log_p_s, p_t, reduction="batchmean") * temperature**2
        total = total + (p_t @ p_t.T - p_s @ p_s.T).square().sum() / batch
        total = total + (p_t.T @ p_t - p_s.T @ p_s).square().sum() / classes
    return total
