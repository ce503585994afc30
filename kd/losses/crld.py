"""Cross-View Consistency Regularisation for Knowledge Distillation, CRLD (Zhang et al., 2024)."""

import torch.nn.functional as F
from torch import Tensor


def crld_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    strong_s: Tensor,
    strong_t: Tensor,
    target: Tensor,
    temperature: float = 4.0,
    within: float = 2.0,
    across: float = 0.5,
    sure: float = 0.9,
    sure_strong: float = 0.2,
) -> Tensor:
    """CE of the strong view + within * KL in each view + across * KL between the views.

    Zhang et al. 2024 (ACM MM), section 3. The teacher answers for a weakly and a strongly augmented
    view of an image. The student learns each answer from the same view and from the other one. The
    KL, times T^2, is a mean over the batch. An image counts 0 where the teacher is not sure. Within
    the views its probability for the weak one decides, between them that for the strong one. The
    weak view's cross-entropy is the objective's.

    Args:
        logits_s, logits_t: of the weak view, [B, C]; the teacher's are detached.
        strong_s, strong_t: the same of the strong view, [B, C].
        target: class labels, int64 [B], or soft labels [B, C].
        temperature: T > 0 of the KL.
        sure, sure_strong: least probability of the teacher's class, at temperature 1.

    Returns:
        scalar >= 0. Its minimum is not 0.
    """

    def apart(s: Tensor, t: Tensor) -> Tensor:
        log_p = F.log_softmax(s / temperature, dim=1)
        p_t = F.softmax(t.detach() / temperature, dim=1)
        return F.kl_div(log_p, p_t, reduction="none").sum(1) * temperature**2

    def counts(t: Tensor, least: float) -> Tensor:
        return (t.detach().softmax(1).amax(1) >= least).to(logits_s)

    same = apart(logits_s, logits_t) + apart(strong_s, strong_t)
    other = apart(strong_s, logits_t) + apart(logits_s, strong_t)
    return (
        F.cross_entropy(strong_s, target)
        + within * (same * counts(logits_t, sure)).mean()
        + across * (other * counts(strong_t, sure_strong)).mean()
    )
