"""Revisiting Knowledge Distillation via Label Smoothing Regularization: Tf-KD_self (Yuan et al.,
2020).
"""

import torch.nn.functional as F
from torch import Tensor


def tfkd_self_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 6.0) -> Tensor:
    """T^2 * KL(softmax(t / T) || softmax(s / T)), batch mean, in nats, between equal nets.

    Yuan et al. 2020, eq. 7: a net trained alone teaches a fresh one of the same architecture. This
    follows the paper. The authors' code averages over the classes too and compensates with a
    multiplier per net.

    Args:
        logits_s: student logits, [B, C].
        logits_t: logits of the same net trained with labels only, [B, C]; detached.
        temperature: T > 0.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant per image.
    """
    log_p_s = F.log_softmax(logits_s / temperature, dim=1)
    p_t = F.softmax(logits_t.detach() / temperature, dim=1)
    return F.kl_div(log_p_s, p_t, reduction="batchmean") * temperature**2
