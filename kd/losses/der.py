"""Dark Experience for General Continual Learning: DER (Buzzega et al., 2020)."""

import torch.nn.functional as F
from torch import Tensor


def der_loss(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Mean of (s - t)^2 over the images that have stored logits, and over the classes that these are of.

    Buzzega et al. 2020, section 3.1, whose alpha is the weight of this term: what the net said of an exemplar when it
    was stored is replayed. A net there has all outputs from the start; here an exemplar's logits are those that there
    were when it was stored.

    Args:
        logits_s: the student's, [B, C].
        logits_t: stored logits [B, C_old] with C_old <= C, of the student's first classes; NaN where there are none: a
            whole row for an image that is no exemplar, the row's end for classes that came later. No gradient flows
            to it.

    Returns:
        scalar >= 0; 0 where all that is stored is met, or nothing is stored.
    """
    stored = ~logits_t.isnan()
    difference = (logits_s[:, : logits_t.shape[1]] - logits_t.detach()).masked_fill(~stored, 0.0)
    return difference.square().sum() / stored.sum().clamp(min=1)


def stream_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over all classes seen so far, mean over the images that are no exemplars, in nats.

    Buzzega et al. 2020, section 3.1, the first summand; its labels are those of the new images alone.

    Args:
        logits_s: the student's, [B, C].
        logits_t: stored logits [B, C_old]; a row of NaN for an image that is no exemplar.
        target: classes int64 [B], or probabilities [B, C].

    Returns:
        scalar >= 0; nothing, where all images have stored logits.
    """
    new = logits_t.isnan().all(1)
    return (F.cross_entropy(logits_s, target, reduction="none") * new).sum() / new.sum().clamp(
        min=1
    )


def exemplars_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over all classes seen so far, mean over the exemplars, in nats: the labels that DER++ adds.

    Buzzega et al. 2020, section 3.2 (beta is this term's weight). With a head that grows nothing else tells an
    exemplar's new outputs to stay low: in the paper they are there, and stored, from the start.

    Args:
        logits_s: the student's, [B, C].
        logits_t: stored logits [B, C_old]; a row of NaN for an image that is no exemplar.
        target: classes int64 [B], or probabilities [B, C].

    Returns:
        scalar >= 0.
    """
    kept = ~logits_t.isnan().all(1)
    return (F.cross_entropy(logits_s, target, reduction="none") * kept).sum() / kept.sum().clamp(
        min=1
    )
