"""Knowledge Distillation Based on Transformed Teacher Matching (Zheng & Yang, 2024)."""

import torch.nn.functional as F
from torch import Tensor


def wttm_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 5.0) -> Tensor:
    """U * KL(softmax(t / T) || softmax(s)), batch mean, in nats; U sums the teacher's p^(1 / T).

    Zheng & Yang 2024 (arXiv 2402.11148), section 4, with gamma = 1 / T. The temperature applies to
    the teacher only, so the student's own softmax approaches the softened teacher. The weight U is
    1 for a sure teacher and grows to C^(1 - 1 / T) for a uniform one. There is no factor T^2.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        temperature: T > 0.

    Returns:
        scalar >= 0; 0 where the student's softmax equals the softened teacher.
    """
    power = F.log_softmax(logits_t.detach(), dim=1) / temperature
    divergence = F.kl_div(
        F.log_softmax(logits_s, dim=1),
        F.log_softmax(power, dim=1),
        reduction="none",
        log_target=True,
    )
    return (power.logsumexp(dim=1).exp() * divergence.sum(dim=1)).mean()
