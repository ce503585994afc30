"""Knowledge Distillation with Refined Logits (Sun et al., 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.losses._labels import binary, shares

NOTHING = -1e9  # the logit of a class that is left out


def rld_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    target: Tensor,
    temperature: float = 4.0,
    sample_temperature: float = 1.0,
    sample_weight: float = 1.0,
    masked_weight: float = 8.0,
) -> Tensor:
    """sample_weight * SCD + masked_weight * MCD, mean over the batch, in nats.

    Sun et al. 2024 (arXiv 2408.07703), section 4, whose alpha and beta are the two weights. SCD is the KL of
    [p_s(label), rest] from [p_t(the teacher's first class), rest], times the square of its temperature: the student
    should be as sure of the label as the teacher is of its own choice. MCD is T^2 times the KL over the classes to
    which the teacher gives less than to the label: those that the teacher wrongly prefers are left out.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C]; no gradient flows to it.
        target: labels, int64 [B], of the images that have one (the objective leaves out the others); or soft labels
            [B, C], for which the loss is the mean over the classes, weighted by the label, of the loss with that
            class as the target.
        temperature: of MCD, T > 0.
        sample_temperature: of SCD, > 0.

    Returns:
        scalar >= 0. Equal logits are its minimum for the images whose label is the teacher's first class alone.
    """
    logits_t = logits_t.detach()
    share, labels = shares(target, logits_s)
    sure = binary(logits_t / sample_temperature, logits_t.argmax(1, keepdim=True))
    total = []
    for k in range(labels.shape[1]):
        label = labels[:, k, None]
        own = binary(logits_s / sample_temperature, label)
        scd = F.kl_div(own, sure, reduction="none", log_target=True).sum(1) * sample_temperature**2
        left_out = logits_t >= logits_t.gather(1, label)
        log_q_s, log_q_t = (
            F.log_softmax((z / temperature).masked_fill(left_out, NOTHING), dim=1)
            for z in (logits_s, logits_t)
        )
        mcd = F.kl_div(log_q_s, log_q_t.exp(), reduction="none").sum(1) * temperature**2
        total.append(share[:, k] * (sample_weight * scd + masked_weight * mcd))
    return torch.stack(total).sum(0).mean()
