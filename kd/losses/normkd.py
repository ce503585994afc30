"""NormKD: Normalized Logits for Knowledge Distillation (Chi et al., 2023)."""

import torch.nn.functional as F
from torch import Tensor


def normkd_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 2.0) -> Tensor:
    """T_t^2 * KL(softmax(t / T_t) || softmax(s / T_s)), mean over the batch, in nats.

    Chi et al. 2023 (arXiv 2308.00520), section 3: each image has its own temperature in each net,
    T_t and T_s. It is `temperature` times the standard deviation of that net's logits (over C - 1,
    as in the authors' code). So all softened outputs have the same spread. Unlike in
    `kd_standardized`, the weight is the square of the teacher's temperature.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        temperature: factor of the deviations, > 0; T_norm of the authors.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant and a positive factor per image.
    """
    t_s, t_t = (temperature * _deviation(z) for z in (logits_s, logits_t.detach()))
    log_p_s = F.log_softmax(logits_s / t_s, dim=1)
    log_p_t = F.log_softmax(logits_t.detach() / t_t, dim=1)
    divergence = F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(1, keepdim=True)
    return (divergence * t_t**2).mean()


def _deviation(logits: Tensor) -> Tensor:
    # The floor keeps the gradient of the root finite where all logits of an image are equal.
    return 1e-7 + logits.var(dim=1, keepdim=True).clamp_min(1e-30).sqrt()
