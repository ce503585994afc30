"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals & Dean, 2015)."""

import torch.nn.functional as F
from torch import Tensor


def kd_loss(
    logits_s: Tensor, logits_t: Tensor, temperature: float = 4.0, standardize: bool = False
) -> Tensor:
    """T^2 * KL(softmax(t / T) || softmax(s / T)), mean over the batch, in nats.

    Hinton et al. 2015, section 2: soft targets at temperature T. Gradients of the soft targets
    scale as 1 / T^2; the factor T^2 keeps their balance with the hard labels when T changes.

    `F.kl_div(input, target)` computes `target * (log(target) - input)`. Its first argument must
    hold *log* probabilities, so the student goes in as a log-softmax. Its second holds
    probabilities, the teacher's softmax. The reduction `batchmean` divides the sum over images and
    classes by B, which is the KL of the definition. `mean` divides by B * C and is C times too
    weak.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        temperature: T > 0.
        standardize: scale each image's logits, of both nets, to mean 0 and deviation 1 first. The
            student then matches the pattern of the teacher's logits, not their size. Sun et al.
            2024, "Logit Standardization in Knowledge Distillation", eq. 9; deviation over C - 1
            plus 1e-7, as in the authors' code.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant per image (with `standardize` also up to
        a positive factor).
    """
    if standardize:
        logits_s, logits_t = _standardize(logits_s), _standardize(logits_t)
    log_p_s = F.log_softmax(logits_s / temperature, dim=1)
    p_t = F.softmax(logits_t.detach() / temperature, dim=1)
    return F.kl_div(log_p_s, p_t, reduction="batchmean") * temperature**2


def _standardize(logits: Tensor) -> Tensor:
    # The floor keeps the gradient of the root finite where all logits of an image are equal.
    deviation = logits.var(dim=1, keepdim=True).clamp_min(1e-30).sqrt()
    return (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + deviation)
