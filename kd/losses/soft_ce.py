"""Cross-entropy with the teacher's soft targets (Hinton, Vinyals & Dean, 2015)."""

import torch.nn.functional as F
from torch import Tensor


def soft_ce_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 4.0) -> Tensor:
    """-T^2 * sum over classes of softmax(t / T) * log softmax(s / T), mean over the batch, in nats.

    Hinton et al. 2015, section 2: "cross entropy with the soft targets". It is `kd_loss` plus T^2
    times the entropy of the soft targets. That entropy does not depend on the student, so the
    gradients are equal.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        temperature: T > 0.

    Returns:
        scalar >= 0. Its minimum is T^2 times the entropy of the soft targets, not 0.
    """
    p_t = F.softmax(logits_t.detach() / temperature, dim=1)
    return F.cross_entropy(logits_s / temperature, p_t) * temperature**2
