"""Knowledge Distillation with Refined Logits (Sun et al., 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.losses._labels import binary, shares

NOTHING = -1e9  # logit of a masked class


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

    Sun et al. 2024 (arXiv 2408.07703), section 4, where the weights are called alpha and beta. SCD
    is the KL of [p_s(label), rest] from [p_t(the teacher's first class), rest], times its
    temperature squared. It makes the student as sure of the label as the teacher is of its choice.
    MCD is T^2 times the KL over the classes that the teacher ranks below the label. Classes that it
    wrongly prefers are masked.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        target: class labels, int64 [B], or soft labels [B, C]. Soft labels give the mean of the
            loss over target classes, weighted by the label. The objective removes unlabelled images
            first.
        temperature: T of MCD, > 0.
        sample_temperature: temperature of SCD, > 0.

    Returns:
        scalar >= 0. Equal logits minimise it only for images whose label is the teacher's first
        class.
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
