"""Handling of hard and soft labels, shared by the losses on logits."""

import torch
import torch.nn.functional as F
from torch import Tensor


def shares(target: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Split labels into classes and their shares.

    Args:
        target: int64 [B], or soft labels [B, C].
        logits: [B, C].

    Returns:
        shares [B, K] and classes [B, K]. K is 1 for int64, else the largest number of classes in
        one label.
    """
    if target.ndim == 1:
        return torch.ones_like(logits[:, :1]), target[:, None]
    share, label = target.topk(int((target > 0).sum(dim=1).max()), dim=1)
    return share, label


def binary(z: Tensor, label: Tensor) -> Tensor:
    """Return log [p(label), 1 - p(label)], [B, 2], for logits [B, C] and classes [B, 1]."""
    both = torch.cat([z.gather(1, label), others(z, label).logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(both, dim=1)


def others(z: Tensor, label: Tensor) -> Tensor:
    """Return the logits of all classes except the label, [B, C - 1], cyclic from the label."""
    classes = z.shape[1]
    return z.gather(1, (label + torch.arange(1, classes, device=z.device)) % classes)
