"""Labels and distillation as two shares of one loss, for incremental classes."""

import torch.nn.functional as F
from torch import Tensor

COMMAND = "kd.incremental"  # only this command has classes that the teacher does not know


def lwf_mix_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    target: Tensor,
    temperature: float = 2.0,
    share: float | None = None,
) -> Tensor:
    """(1 - share) * CE + share * cross-entropy of softmax(s_old / T) with softmax(t / T), batch
    means, in nats.

    Wu et al. 2019, "Large Scale Incremental Learning", section 3, and Zhao et al. 2020,
    "Maintaining Discrimination and Fairness in Class Incremental Learning", section 3. The
    cross-entropy with the labels runs over all classes seen so far, the distillation over the old
    ones. There is no factor T^2, as in the papers.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits of the student's first classes, [B, C_old] with C_old <= C;
            detached.
        target: classes int64 [B], or probabilities [B, C].
        temperature: T > 0.
        share: lambda, the share of the distillation, in [0, 1]; None for C_old / C, as in both
            papers. A teacher that knows all classes then leaves the labels unused.

    Returns:
        scalar >= 0. Its minimum is the entropy of the soft targets times their share, not 0.
    """
    old = logits_t.shape[1]
    share = old / logits_s.shape[1] if share is None else share
    soft = F.cross_entropy(
        logits_s[:, :old] / temperature, F.softmax(logits_t.detach() / temperature, dim=1)
    )
    return (1 - share) * F.cross_entropy(logits_s, target) + share * soft
