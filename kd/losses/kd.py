"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals & Dean, 2015)."""

import torch.nn.functional as F
from torch import Tensor


def kd_loss(
    logits_s: Tensor, logits_t: Tensor, temperature: float = 4.0, standardize: bool = False
) -> Tensor:
    """T^2 * KL(softmax(t / T) || softmax(s / T)), mean over the batch, in nats.

    Follows Hinton et al. 2015, section 2: soft targets at temperature T, and the factor T^2 because the gradients of
    the soft targets scale as 1 / T^2, so that the balance with the hard labels holds when T is changed.

    `F.kl_div(input, target)` computes `target * (log(target) - input)`: its first argument must hold *log*
    probabilities, so the student goes in as a log-softmax (computed in one go, which does not overflow), and its
    second holds probabilities, the teacher's softmax. Of its reductions, `sum` adds over images and classes,
    `batchmean` divides that by B, the KL of the definition, and `mean` divides it by B * C, which is C times too weak.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C]; no gradient flows to it.
        temperature: T > 0.
        standardize: first bring each image's logits, of both nets, to mean 0 and deviation 1 (Sun et al. 2024, "Logit
            Standardization in Knowledge Distillation", eq. 9; deviation over C - 1 and 1e-7 added to it, as in the
            authors' code). The student then need not match the size of the teacher's logits, only their pattern.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant per image (and, standardized, a positive factor).
    """
    if standardize:
        logits_s, logits_t = _standardized(logits_s), _standardized(logits_t)
    log_p_s = F.log_softmax(logits_s / temperature, dim=1)
    p_t = F.softmax(logits_t.detach() / temperature, dim=1)
    return F.kl_div(log_p_s, p_t, reduction="batchmean") * temperature**2


def _standardized(logits: Tensor) -> Tensor:
    # The floor keeps the root's slope finite where all logits of an image are equal.
    deviation = logits.var(dim=1, keepdim=True).clamp_min(1e-30).sqrt()
    return (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + deviation)
