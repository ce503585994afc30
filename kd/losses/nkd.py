"""Normalized Knowledge Distillation: From Knowledge Distillation to Self-Knowledge Distillation
(Yang et al., 2023).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def nkd_loss(
    logits_s: Tensor, logits_t: Tensor, target: Tensor, temperature: float = 1.0, gamma: float = 1.5
) -> Tensor:
    """-p_t(y) * log p_s(y) - gamma * T^2 * sum over i != y of q_t(i) * log q_s(i), mean over the
    batch, in nats.

    Yang et al. 2023, eq. 7, with the defaults of the authors' code. p is taken at temperature 1. q
    are the probabilities of the non-target classes at temperature T, normalised to sum to 1. Both
    parts are cross-entropies. The term is added to the cross-entropy with the labels, which has
    weight 1.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        target: class labels, int64 [B], or soft labels [B, C]. Soft labels give the mean of the
            loss over target classes, weighted by the label. The objective removes unlabelled images
            first. (The authors' code uses only the largest class.)
        temperature: T > 0.
        gamma: weight of the non-target classes, >= 0.

    Returns:
        scalar >= 0. Its minimum is not 0, and is not at equal logits.
    """
    logits_t = logits_t.detach()
    if target.ndim == 1:
        share = torch.ones_like(logits_s[:, :1])
        label = target[:, None]
    else:
        share, label = target.topk(int((target > 0).sum(dim=1).max()), dim=1)
    at_target = F.softmax(logits_t, dim=1) * F.log_softmax(logits_s, dim=1)
    total = torch.zeros_like(share[:, 0])
    for k in range(label.shape[1]):
        y = label[:, k, None]
        q_t = F.softmax(_others(logits_t, y) / temperature, dim=1)
        log_q_s = F.log_softmax(_others(logits_s, y) / temperature, dim=1)
        beside = (q_t * log_q_s).sum(dim=1)
        total = total - share[:, k] * (
            at_target.gather(1, y)[:, 0] + gamma * temperature**2 * beside
        )
    return total.mean()


def _others(z: Tensor, label: Tensor) -> Tensor:
    """Return the logits of the non-target classes, [B, C - 1], in cyclic order after the target."""
    classes = z.shape[1]
    return z.gather(1, (label + torch.arange(1, classes, device=z.device)) % classes)
