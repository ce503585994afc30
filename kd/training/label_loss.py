"""The loss of the labels, and the accuracy on them, in training."""

import torch.nn.functional as F
from torch import Tensor

from kd.measure.metrics import is_right


def label_loss(
    logits: Tensor,
    target: Tensor,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
    offsets: tuple[float, ...] | None = None,
    focal_gamma: float | None = None,
) -> Tensor:
    """Compute the cross-entropy in nats, mean over labelled images; 0 without any.

    Args:
        logits: [B, C], float32.
        target: as for `label_mask`. Of several labels the loss is the binary cross-entropy, mean
            over the classes.
        class_weights: factor of each class's cross-entropy. The mean is over images, not over
            weights, so that an image counts the same in any batch.
        label_smoothing: in [0, 1): share of a label spread evenly over all classes (Szegedy et al.
            2016, "Rethinking the Inception Architecture", section 7).
        offsets: added to the logits (Menon et al. 2021, eq. 10); see `data.logit_adjustment`.
        focal_gamma: power > 0 of 1 - p before each logarithm (Lin et al. 2017, eq. 4).
    """
    labelled = label_mask(target)
    if offsets:
        logits = logits + logits.new_tensor(offsets)
    if is_multilabel(target):
        losses = _binary(logits, target.clamp(min=0).to(logits.dtype), focal_gamma)
    elif focal_gamma:
        losses = _focal(logits, target, focal_gamma, class_weights, label_smoothing)
    else:
        losses = F.cross_entropy(
            logits,
            target.clamp(min=-1) if target.ndim == 1 else target,
            logits.new_tensor(class_weights) if class_weights else None,
            ignore_index=-1 if target.ndim == 1 else -100,  # torch's own, for probabilities
            reduction="none",
            label_smoothing=label_smoothing,
        )
    # Smoothing would also give a row of zeros a loss, so it is masked here.
    return (losses * labelled).sum() / labelled.sum().clamp(min=1)


def _binary(logits: Tensor, target: Tensor, gamma: float | None) -> Tensor:
    """Compute the binary cross-entropy of each image, mean over its classes, [B]."""
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if gamma:  # 1 - p, where p is the probability of the right answer
        losses = losses * (-(-losses).expm1()).clamp(min=1e-6) ** gamma
    return losses.mean(1)


def _focal(
    logits: Tensor,
    target: Tensor,
    gamma: float,
    class_weights: tuple[float, ...] | None,
    label_smoothing: float,
) -> Tensor:
    """Compute the focal loss of each image, [B]; of probabilities the sum over their classes."""
    classes = logits.shape[1]
    hard = target.ndim == 1
    soft = F.one_hot(target.clamp(min=0), classes) if hard else target
    soft = (1 - label_smoothing) * soft + label_smoothing / classes
    if class_weights:
        soft = soft * logits.new_tensor(class_weights)
    log_p = logits.log_softmax(1)
    others = (-log_p.expm1()).clamp(min=1e-6)  # 1 - p; a root has no slope at 0
    return -(soft * others**gamma * log_p).sum(1)


def accuracy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the accuracy on labelled images, a fraction, and how many are labelled; scalars.

    A mixed image counts as its larger part. Of several labels all must be right.

    Args:
        logits: [B, C].
        target: as for `label_mask`.
    """
    labelled = label_mask(target)
    right = is_right(logits, target.argmax(1) if target.is_floating_point() else target) & labelled
    count = labelled.sum()
    return right.sum() / count.clamp(min=1), count.float()


def label_mask(target: Tensor) -> Tensor:
    """Mark the labelled images of a batch: bool [B].

    Args:
        target: classes, int64 [B], negative for no label; or probabilities [B, C], a row of zeros
            for none; or several labels, int8 [B, C], a row of -1 for an unlabelled image.
    """
    if is_multilabel(target):
        return target[:, 0] >= 0
    return target >= 0 if target.ndim == 1 else target.sum(1) > 0


def is_multilabel(target: Tensor) -> bool:
    """Whether a target as of `label_mask` is of several labels: [B, C], and not [B]."""
    return target.ndim == 2 and not target.is_floating_point()
