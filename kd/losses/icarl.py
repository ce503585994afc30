"""iCaRL: Incremental Classifier and Representation Learning (Rebuffi et al., 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def icarl_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor) -> Tensor:
    """Sum over the classes of the binary cross-entropy of sigmoid(s), mean over the batch, in nats.

    Rebuffi et al. 2017, algorithm 3: each output is a yes or no of its own. What an old class's is to be, the teacher's
    sigmoid says, for the exemplars too; a new class's is to be 1 for its images and 0 for all others. The authors' code
    takes the mean over the classes instead of their sum.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C_old] with C_old <= C, those classes that are the student's first; no gradient
            flows to it. A teacher that knows all classes leaves nothing to the labels.
        target: classes int64 [B], or probabilities [B, C].

    Returns:
        scalar >= 0. Its minimum is the binary entropy of the teacher's sigmoids, not 0.
    """
    new = _wanted(logits_s, target)[:, logits_t.shape[1] :]
    wanted = torch.cat([logits_t.detach().sigmoid(), new], dim=1)
    return F.binary_cross_entropy_with_logits(logits_s, wanted, reduction="sum") / len(logits_s)


def icarl_labels_loss(logits_s: Tensor, target: Tensor) -> Tensor:
    """The same where no class is old: the first task's, on labels alone (algorithm 3 with s = 1).

    Args:
        logits_s: the student's, [B, C].
        target: classes int64 [B], or probabilities [B, C].

    Returns:
        scalar >= 0.
    """
    wanted = _wanted(logits_s, target)
    return F.binary_cross_entropy_with_logits(logits_s, wanted, reduction="sum") / len(logits_s)


def _wanted(logits_s: Tensor, target: Tensor) -> Tensor:
    hot = F.one_hot(target, logits_s.shape[1]) if target.ndim == 1 else target
    return hot.to(logits_s.dtype)
