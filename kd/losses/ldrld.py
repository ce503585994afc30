"""Local Dense Logit Relations for Enhanced Knowledge Distillation (Xu et al., 2025)."""

import torch
import torch.nn.functional as F
from torch import Tensor

GAP, DECAY, SCALE = 1.5, 0.05, 2.0  # the paper's epsilon, lambda and delta


def ldrld_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    temperature: float = 4.0,
    depth: int = 7,
    local_weight: float = 10.5,
    rest_weight: float = 7.0,
) -> Tensor:
    """T^2 * (local_weight * local + rest_weight * rest), mean over the batch, in nats.

    Xu et al. 2025 (arXiv 2507.15911), section 3, whose alpha and beta are the two weights. Local
    takes the student's `depth` highest classes. For each pair of them it has the KL between the two
    nets' probabilities of these two classes; it adds the KL over all of them at once. A pair of the
    ranks i and j counts 2 * exp(-0.05 * (i + j)) / (1.5 + |i - j|). Rest is the KL over the other
    classes.

    The authors' code divides local by the number of its KL terms, the paper does not; this follows
    the code.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        temperature: T > 0.
        depth: number of classes d > 1; at most C are taken.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant per image.

    Raises:
        ValueError: `depth` is below 2.
    """
    if depth < 2:
        raise ValueError(f"depth: found {depth}, accepted is an integer from 2")
    s = logits_s / temperature
    t = logits_t.detach() / temperature
    order = s.detach().argsort(dim=1, descending=True)
    first = order[:, :depth]
    others = order[:, depth:]
    top_s = s.gather(1, first)
    top_t = t.gather(1, first)
    i, j = torch.triu_indices(top_s.shape[1], top_s.shape[1], 1, device=s.device)
    ranks = torch.stack([i, j]).to(s) + 1
    weight = SCALE * torch.exp(-DECAY * ranks.sum(0)) / (GAP + ranks[1] - ranks[0])
    pairs = _kl(torch.stack([top_s[:, i], top_s[:, j]]), torch.stack([top_t[:, i], top_t[:, j]]), 0)
    local = ((pairs * weight).sum(1) + _kl(top_s, top_t, 1)) / (len(i) + 1)
    total = local_weight * local
    if others.shape[1]:
        total = total + rest_weight * _kl(s.gather(1, others), t.gather(1, others), 1)
    return total.mean() * temperature**2


def _kl(s: Tensor, t: Tensor, dim: int) -> Tensor:
    log_p_s = F.log_softmax(s, dim=dim)
    log_p_t = F.log_softmax(t, dim=dim)
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(dim)
