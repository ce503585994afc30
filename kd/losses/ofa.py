"""One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation (Hao et al., 2023)."""

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
    """-sum over classes of ((p_t + [class is target])^epsilon - [class is target]) * log p_s, mean over the batch.

    Hao et al. 2023, eq. 6 (written there with gamma for epsilon), for the student's own logits; the exit branches that
    the method adds to the student's stages are not part of it. In nats. An epsilon above 1 raises the target's share
    over what a teacher of another architecture believes of the other classes; 1 leaves the cross-entropy with the
    teacher's probabilities. 1.5 is what the authors' README trains ImageNet with.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C]; no gradient flows to it.
        target: labels, int64 [B], of the images that have one (the objective leaves out the others); or soft labels
            [B, C], for which the loss is the mean over the classes, weighted by the label, of the loss with that
            class as the target (the authors' code takes the largest alone).
        temperature: T > 0, of both p_t and p_s.
        epsilon: >= 1.

    Returns:
        scalar >= 0. Its minimum is not 0, and equal logits are not where it is.
    """
    log_p_s = F.log_softmax(logits_s / temperature, dim=1)
    p_t = F.softmax(logits_t.detach() / temperature, dim=1)
    label = target if target.ndim == 2 else F.one_hot(target, p_t.shape[1]).to(p_t.dtype)
    is_target, is_other = (1 + p_t) ** epsilon - 1, p_t**epsilon
    return -torch.sum((label * is_target + (1 - label) * is_other) * log_p_s, dim=1).mean()
