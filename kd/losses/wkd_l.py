"""Wasserstein Distance Rivals Kullback-Leibler Divergence: logits (Lv, Yang & Li, 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._labels import shares
from kd.losses._maps import unit

TINY = 1e-8


def wkd_l_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    target: Tensor,
    head_t: nn.Module,
    temperature: float = 8.0,
    gamma: float = 600.0,
    sharpen: float = 1.0,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """-p_t(target) * log p_s(target) + gamma * W, mean over the batch.

    Lv et al. 2024 (arXiv 2412.08139), section 3.1. W is the Wasserstein distance between the two
    nets' probabilities of the classes beside the target, at temperature T. So mass that moves to a
    similar class costs little. Moving it from class i to j costs 1 - exp(-sharpen * (1 - cos)), of
    the cosine of the two classes' weights in the teacher's last layer. W is approximated by
    Sinkhorn's iterations. The first part has temperature 1, as in NKD.

    The paper's other measure of similarity, CKA over the features of all training images, would
    need a pass over them before training; in the authors' code the weights are its alternative. The
    code copies the costs for each image, [B, C, C]; here they are kept once, [C, C], with equal
    values.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        target: class labels, int64 [B], or soft labels [B, C]. Soft labels give the mean of the
            loss over target classes, weighted by the label.
        head_t: last layer of the teacher, linear or a convolution of size 1.
        temperature: T > 0.
        regularization: of Sinkhorn's iterations, > 0; smaller is closer to the exact distance.
        iterations: their number.

    Returns:
        scalar >= 0. Its minimum is not 0.
    """
    share, labels = shares(target, logits_s)
    weight = head_t.weight
    assert isinstance(weight, Tensor)
    rows = unit(weight.detach().flatten(1).to(logits_s))
    cost = (1 - torch.exp(-sharpen * (1 - rows @ rows.T))).relu() + TINY
    log_p_s = F.log_softmax(logits_s, dim=1)
    p_t = F.softmax(logits_t.detach(), dim=1)
    each = []
    for k in range(labels.shape[1]):
        label = labels[:, k, None]
        own = -(p_t.gather(1, label) * log_p_s.gather(1, label)).squeeze(1)
        left_out = torch.zeros_like(logits_s, dtype=torch.bool).scatter_(1, label, True)
        mass_s, mass_t = (
            F.softmax((z / temperature).masked_fill(left_out, -1e9), dim=1)
            for z in (logits_s, logits_t.detach())
        )
        moved = _distance(mass_s, mass_t, ~left_out, cost, regularization, iterations)
        each.append(share[:, k] * (own + gamma * moved))
    return torch.stack(each).sum(0).mean()


def _distance(
    p_s: Tensor, p_t: Tensor, counts: Tensor, cost: Tensor, regularization: float, iterations: int
) -> Tensor:
    """Sinkhorn's distance of the rows of p_s and p_t [B, C] under the cost [C, C]; [B].

    Classes outside `counts`, bool [B, C], have no mass and take no part.
    """
    kernel = torch.exp(-cost / regularization)
    u = counts.to(p_s) / counts.sum(1, keepdim=True)
    for _ in range(iterations):
        v = p_t / (u @ kernel + TINY)  # cost and kernel are symmetric
        u = p_s / (v @ kernel + TINY)
    return ((u @ (kernel * cost)) * v).sum(1)
