"""Labels, hard or soft, and logits with and without the class that a label names: what methods on logits share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def shares(target: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that each label names, and how much of it each has.

    Args:
        target: int64 [B], or soft labels [B, C].
        logits: [B, C].

    Returns:
        shares [B, K] and classes [B, K]; K is 1 for int64, else as many as the widest label names.
    """
    if target.ndim == 1:
        return torch.ones_like(logits[:, :1]), target[:, None]
    share, label = target.topk(int((target > 0).sum(dim=1).max()), dim=1)
    return share, label


def binary(z: Tensor, label: Tensor) -> Tensor:
    """Logarithms of [p(label), 1 - p(label)], [B, 2], of logits [B, C] and classes [B, 1]."""
    both = torch.cat([z.gather(1, label), others(z, label).logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(both, dim=1)


def others(z: Tensor, label: Tensor) -> Tensor:
    """Logits of the classes beside the label, [B, C - 1], from the one after it round to the one before it."""
    classes = z.shape[1]
    return z.gather(1, (label + torch.arange(1, classes, device=z.device)) % classes)
