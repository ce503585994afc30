"""Knowledge Distillation Based on Transformed Teacher Matching (Zheng & Yang, 2024)."""

import torch.nn.functional as F
from torch import Tensor


def wttm_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 5.0) -> Tensor:
    """U * KL(softmax(t / T) || softmax(s)), mean over the batch, in nats; U is the sum of the teacher's p^(1 / T).

    Zheng & Yang 2024 (arXiv 2402.11148), section 4, with the authors' gamma = 1 / T: the temperature softens the
    teacher alone, so the student is drawn to its softened answer as it stands. The weight U is 1 where the teacher is
    sure and grows to C^(1 - 1 / T) where it knows nothing. There is no factor T^2.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C]; no gradient flows to it.
        temperature: T > 0.

    Returns:
        scalar >= 0; 0 where the student says what the softened teacher says.
    """
    power = F.log_softmax(logits_t.detach(), dim=1) / temperature
    divergence = F.kl_div(
        F.log_softmax(logits_s, dim=1),
        F.log_softmax(power, dim=1),
        reduction="none",
        log_target=True,
    )
    return (power.logsumexp(dim=1).exp() * divergence.sum(dim=1)).mean()
