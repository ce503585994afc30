"""iCaRL: Incremental Classifier and Representation Learning (Rebuffi et al., 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

COMMAND = "kd.incremental"  # only this command has classes that the teacher does not know


def icarl_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor) -> Tensor:
    """Sum over the classes of the binary cross-entropy of sigmoid(s), mean over the batch, in nats.

    Rebuffi et al. 2017, algorithm 3: each output is a binary classifier. The target of an old class
    is the teacher's sigmoid, for exemplars too. The target of a new class is 1 for its images and 0
    for all others. The authors' code averages over the classes instead of summing.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits of the student's first classes, [B, C_old] with C_old <= C;
            detached. A teacher that knows all classes leaves the labels unused.
        target: classes int64 [B], or probabilities [B, C].

    Returns:
        scalar >= 0. Its minimum is the binary entropy of the teacher's sigmoids, not 0.
    """
    new = _targets(logits_s, target)[:, logits_t.shape[1] :]
    wanted = torch.cat([logits_t.detach().sigmoid(), new], dim=1)
    return F.binary_cross_entropy_with_logits(logits_s, wanted, reduction="sum") / len(logits_s)


def icarl_labels_loss(logits_s: Tensor, target: Tensor) -> Tensor:
    """The loss of the first task, which has no old classes: labels only (algorithm 3 with s = 1).

    Args:
        logits_s: student logits, [B, C].
        target: classes int64 [B], or probabilities [B, C].

    Returns:
        scalar >= 0.
    """
    wanted = _targets(logits_s, target)
    return F.binary_cross_entropy_with_logits(logits_s, wanted, reduction="sum") / len(logits_s)


def _targets(logits_s: Tensor, target: Tensor) -> Tensor:
    hot = F.one_hot(target, logits_s.shape[1]) if target.ndim == 1 else target
    return hot.to(logits_s.dtype)
