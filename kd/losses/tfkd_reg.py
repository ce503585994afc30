"""Revisiting Knowledge Distillation via Label Smoothing Regularization: Tf-KD_reg (Yuan et al., 2020)."""

import torch.nn.functional as F
from torch import Tensor


def tfkd_reg_loss(
    logits_s: Tensor, target: Tensor, temperature: float = 20.0, correct: float = 0.99
) -> Tensor:
    """KL(softmax(u / T) || softmax(s)), mean over the batch, in nats; u is a teacher made by hand.

    Yuan et al. 2020, eq. 8 and 9: u is `correct` at the target and (1 - correct) / (C - 1) elsewhere. The authors' code
    for CIFAR-100 is followed in that u goes through a softmax once more, that T is not applied to the student (eq. 9
    applies it), and that there is no T^2. The code's `mean` over images and classes, times its multiplier of 100 for
    the 100 classes, is the mean over images taken here.

    Args:
        logits_s: the student's, [B, C].
        target: labels, int64 [B], of the images that have one (the objective leaves out the others); or soft labels
            [B, C], for which u is the mean, weighted by the label, of the u's of the classes.
        temperature: T > 0.
        correct: what the teacher made by hand gives the target, from 0 to 1.

    Returns:
        scalar >= 0.
    """
    classes = logits_s.shape[1]
    label = target if target.ndim == 2 else F.one_hot(target, classes).to(logits_s.dtype)
    u = correct * label + (1 - correct) / (classes - 1) * (1 - label)
    return F.kl_div(
        F.log_softmax(logits_s, dim=1), F.softmax(u / temperature, dim=1), reduction="batchmean"
    )
