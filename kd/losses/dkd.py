"""Decoupled Knowledge Distillation (Zhao et al., 2022)."""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.losses._labels import binary, others, shares


def dkd_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    target: Tensor,
    temperature: float = 4.0,
    target_weight: float = 1.0,
    non_target_weight: float = 8.0,
) -> Tensor:
    """T^2 * (target_weight * TCKD + non_target_weight * NCKD), mean over the batch, in nats.

    Zhao et al. 2022, eq. 7, where the weights are called alpha and beta. TCKD is the KL between the
    two nets' [p(target), 1 - p(target)]. NCKD is the KL between their probabilities of the other
    classes, normalised to sum to 1. Plain KD is TCKD + (1 - p_t(target)) * NCKD, in which a sure
    teacher nearly switches NCKD off.

    The authors' code subtracts 1000 from the target's logit and takes the log of a probability that
    may underflow to 0. Here the paper's definition is computed in log space: same values, always
    finite.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        target: class labels, int64 [B], or soft labels [B, C]. Soft labels give the mean of the
            loss over target classes, weighted by the label. The objective removes unlabelled images
            first. The cost grows with the number of classes per label.
        temperature: T > 0.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant per image. With two classes one class
        remains beside the target, so NCKD is 0; the first such call warns.
    """
    share, labels = shares(target, logits_s)
    s = logits_s / temperature
    t = logits_t.detach() / temperature
    each = [
        share[:, k] * dkd_of_images(s, t, labels[:, k, None], target_weight, non_target_weight)
        for k in range(labels.shape[1])
    ]
    return torch.stack(each).sum(dim=0).mean() * temperature**2


def dkd_of_images(
    s: Tensor, t: Tensor, label: Tensor, target_weight: float, non_target_weight: float
) -> Tensor:
    """Compute the loss of each image, [B], without T^2, of softened logits [B, C] and a class per
    image, [B, 1].
    """
    if s.shape[1] == 2:
        _warn_of_two_classes()
    return target_weight * _tckd(s, t, label) + non_target_weight * _nckd(s, t, label)


def _tckd(s: Tensor, t: Tensor, label: Tensor) -> Tensor:
    return F.kl_div(binary(s, label), binary(t, label), reduction="none", log_target=True).sum(
        dim=1
    )


def _nckd(s: Tensor, t: Tensor, label: Tensor) -> Tensor:
    log_q_s, log_q_t = (F.log_softmax(others(z, label), dim=1) for z in (s, t))
    return F.kl_div(log_q_s, log_q_t, reduction="none", log_target=True).sum(dim=1)


@functools.cache  # warn once per process
def _warn_of_two_classes() -> None:
    warnings.warn(
        "dkd: with two classes its non-target part is 0, so only the target part distils",
        stacklevel=3,
    )
