"""Learning without Forgetting (Li & Hoiem, 2016): the net before the new classes teaches.

The teacher may know fewer classes: its C_old outputs are the first C_old of the student's. If it
knows all classes (plain distillation), none is new and the labels count for all classes.
"""

import torch.nn.functional as F
from torch import Tensor

COMMAND = "kd.incremental"  # only this command has classes that the teacher does not know


def lwf_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 2.0) -> Tensor:
    """-sum over old classes of softmax(t / T) * log softmax(s_old / T), batch mean, in nats.

    Li & Hoiem 2016, "Learning without Forgetting", eq. 2 to 4: their y' ** (1 / T), normalised, is
    softmax(t / T). Both softmaxes run over the old classes only. There is no factor T^2, as in the
    paper. The authors use T = 2 and weight lambda_o = 1. They first train the new outputs alone;
    that warm-up is left out here.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C_old] with C_old <= C; detached.
        temperature: T > 0.

    Returns:
        scalar >= 0. Its minimum is the entropy of the soft targets, not 0.
    """
    old = logits_t.shape[1]
    return F.cross_entropy(
        logits_s[:, :old] / temperature, F.softmax(logits_t.detach() / temperature, dim=1)
    )


def new_classes_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the new classes' outputs, mean over the images of new classes, in nats.

    Li & Hoiem 2016, eq. 1: the softmax runs over the new classes, so labels do not touch the old
    outputs.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C_old]; only the width C_old is used.
        target: classes int64 [B], or probabilities [B, C]. Images of old classes and unlabelled
            images are left out. A mixed image counts by its share of new classes.

    Returns:
        scalar >= 0; 0 if the batch has no image of a new class.
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
