"""Revisiting Knowledge Distillation via Label Smoothing Regularization: Tf-KD_reg (Yuan et al.,
2020).
"""

import torch.nn.functional as F
from torch import Tensor


def tfkd_reg_loss(
    logits_s: Tensor, target: Tensor, temperature: float = 20.0, correct: float = 0.99
) -> Tensor:
    """KL(softmax(u / T) || softmax(s)), mean over the batch, in nats; u is a virtual teacher.

    Yuan et al. 2020, eq. 8 and 9: u is `correct` at the target and (1 - correct) / (C - 1)
    elsewhere. As in the authors' code for CIFAR-100, u passes a softmax once more, T is not applied
    to the student (eq. 9 applies it), and there is no T^2. The code averages over images and
    classes and multiplies by 100, for 100 classes. That is the mean over images used here.

    Args:
        logits_s: student logits, [B, C].
        target: class labels, int64 [B], or soft labels [B, C]. With soft labels u is the mean over
            classes, weighted by the label. The objective removes unlabelled images first.
        temperature: T > 0.
        correct: value of u at the target, in [0, 1].

    Returns:
        scalar >= 0.
    """
    classes = logits_s.shape[1]
    label = target if target.ndim == 2 else F.one_hot(target, classes).to(logits_s.dtype)
    u = correct * label + (1 - correct) / (classes - 1) * (1 - label)
    return F.kl_div(
        F.log_softmax(logits_s, dim=1), F.softmax(u / temperature, dim=1), reduction="batchmean"
    )
