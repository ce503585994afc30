"""One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation (Hao et
al., 2023).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ofa_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    epsilon: float = 1.5,
) -> Tensor:
    """-sum over classes of ((p_t + [class is target])^epsilon - [class is target]) * log p_s, batch
    mean, in nats.

    Hao et al. 2023, eq. 6 (gamma there is epsilon here), for the student's own logits. The exit
    branches of the method are not included. An epsilon above 1 raises the target's weight over what
    a teacher of another architecture believes of the other classes. Epsilon 1 gives the
    cross-entropy with the teacher's probabilities. The authors' README uses 1.5 for ImageNet.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        target: class labels, int64 [B], or soft labels [B, C]. Soft labels give the mean of the
            loss over target classes, weighted by the label. The objective removes unlabelled images
            first. (The authors' code uses only the largest class.)
        temperature: T > 0, of both p_t and p_s.
        epsilon: >= 1.

    Returns:
        scalar >= 0. Its minimum is not 0, and is not at equal logits.
    """
    log_p_s = F.log_softmax(logits_s / temperature, dim=1)
    p_t = F.softmax(logits_t.detach() / temperature, dim=1)
    label = target if target.ndim == 2 else F.one_hot(target, p_t.shape[1]).to(p_t.dtype)
    is_target = (1 + p_t) ** epsilon - 1
    is_other = p_t**epsilon
    return -torch.sum((label * is_target + (1 - label) * is_other) * log_p_s, dim=1).mean()
