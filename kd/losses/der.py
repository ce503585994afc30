"""Dark Experience for General Continual Learning: DER (Buzzega et al., 2020)."""

import torch.nn.functional as F
from torch import Tensor

COMMAND = "kd.incremental"  # only this command has classes that the teacher does not know


def der_loss(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Mean of (s - t)^2 over the images with stored logits and the classes these cover.

    Buzzega et al. 2020, section 3.1 (alpha is the weight of this term): logits are stored with each
    exemplar and replayed. In the paper the head has all outputs from the start. Here the stored
    logits cover the classes known at that time.

    Args:
        logits_s: student logits, [B, C].
        logits_t: stored logits of the first classes, [B, C_old] with C_old <= C; detached. NaN
            marks what is missing: a whole row for an image that is no exemplar, the end of a row
            for later classes.

    Returns:
        scalar >= 0; 0 where the student matches all stored logits, or none are stored.
    """
    stored = ~logits_t.isnan()
    difference = (logits_s[:, : logits_t.shape[1]] - logits_t.detach()).masked_fill(~stored, 0.0)
    return difference.square().sum() / stored.sum().clamp(min=1)


def stream_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the classes seen so far, mean over the non-exemplars, in nats.

    Buzzega et al. 2020, section 3.1, first summand; it uses the labels of new images only.

    Args:
        logits_s: student logits, [B, C].
        logits_t: stored logits [B, C_old]; a row of NaN for an image that is no exemplar.
        target: classes int64 [B], or probabilities [B, C].

    Returns:
        scalar >= 0; 0 if all images have stored logits.
    """
    new = logits_t.isnan().all(1)
    return (F.cross_entropy(logits_s, target, reduction="none") * new).sum() / new.sum().clamp(
        min=1
    )


def exemplars_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the classes seen so far, mean over the exemplars, in nats (DER++).

    Buzzega et al. 2020, section 3.2 (beta is the weight of this term). With a growing head only
    these labels keep an exemplar's new outputs low. In the paper those outputs exist, and are
    stored, from the start.

    Args:
        logits_s: student logits, [B, C].
        logits_t: stored logits [B, C_old]; a row of NaN for an image that is no exemplar.
        target: classes int64 [B], or probabilities [B, C].

    Returns:
        scalar >= 0.
    """
    kept = ~logits_t.isnan().all(1)
    return (F.cross_entropy(logits_s, target, reduction="none") * kept).sum() / kept.sum().clamp(
        min=1
    )
