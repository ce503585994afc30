"""Learning without Forgetting (Li & Hoiem, 2016): the net as it was before the new classes came teaches the old ones.

Here the teacher may know fewer classes than the student: its C_old outputs are the student's first C_old. A teacher
that knows all of them (plain distillation) leaves no class new; the labels then count for all classes.
"""

import torch.nn.functional as F
from torch import Tensor


def lwf_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 2.0) -> Tensor:
    """-sum over the old classes of softmax(t / T) * log softmax(s_old / T), mean over the batch, in nats.

    Li & Hoiem 2016, "Learning without Forgetting", eq. 2 to 4: their y' ** (1 / T), normalised, is softmax(t / T). The
    softmax is over the old classes alone, on both sides. Without a factor T^2, as there; the authors' T is 2 and the
    weight of this term, lambda_o, is 1. They train the new outputs alone first; that warm-up is left out here.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C_old] with C_old <= C; no gradient flows to it.
        temperature: T > 0.

    Returns:
        scalar >= 0. Its minimum is the entropy of the soft targets, not 0.
    """
    old = logits_t.shape[1]
    return F.cross_entropy(
        logits_s[:, :old] / temperature, F.softmax(logits_t.detach() / temperature, dim=1)
    )


def new_classes_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the new classes' outputs alone, mean over the images of new classes, in nats.

    Li & Hoiem 2016, eq. 1: the softmax is over the new classes, so the labels leave the old outputs alone.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C_old]; only its width counts, the number of old classes.
        target: classes int64 [B], or probabilities [B, C]. An image of an old class, or without a label, is left out;
            of a mixed picture the part that is of new classes counts.

    Returns:
        scalar >= 0; nothing, where the batch has no image of a new class.
    """
    old = logits_t.shape[1] if logits_t.shape[1] < logits_s.shape[1] else 0
    log_p = F.log_softmax(logits_s[:, old:], dim=1)
    if target.ndim == 2:
        share = target[:, old:].to(log_p.dtype)
        return -(share * log_p).sum() / (share.sum(1) > 0).sum().clamp(min=1)
    new = target >= old
    return F.nll_loss(
        log_p, (target - old).where(new, -1), ignore_index=-1, reduction="sum"
    ) / new.sum().clamp(min=1)
