"""Deep Mutual Learning (Zhang et al., 2018)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def dml_loss(logits_s: Tensor, logits_p: Tensor, target: Tensor) -> Tensor:
    """KL(p_peer || p_student) + CE(peer) + KL(p_student || p_peer), each the mean over the batch, in nats.

    Zhang et al. 2018, eq. 5 to 7: the first part teaches the student (beside its own cross-entropy, at weight 1), the
    other two the peer; in each KL the net that teaches gets no gradient, and the temperature is 1. The two nets take
    their steps at once, by one optimiser, where the paper's algorithm lets them take turns.

    Args:
        logits_s: the student's, [B, C].
        logits_p: the peer's, [B, C].
        target: labels, int64 [B], -1 for none; or soft labels [B, C], a row of zeros for none. An image without a
            label counts in both KLs, and not in the peer's cross-entropy.

    Returns:
        scalar >= 0. At equal logits it is the peer's cross-entropy, not 0.
    """
    log_p_s, log_p_p = F.log_softmax(logits_s, dim=1), F.log_softmax(logits_p, dim=1)
    to_student = F.kl_div(log_p_s, log_p_p.detach(), reduction="batchmean", log_target=True)
    to_peer = F.kl_div(log_p_p, log_p_s.detach(), reduction="batchmean", log_target=True)
    ignored: Any = {"ignore_index": -1} if target.ndim == 1 else {}
    labels = F.cross_entropy(logits_p, target, reduction="sum", **ignored)
    return to_student + labels / _labelled(target).sum().clamp(min=1) + to_peer


def _labelled(target: Tensor) -> Tensor:
    return target >= 0 if target.ndim == 1 else target.sum(dim=1) > 0


class DML(nn.Module):
    """The loss with the peer net, which starts from scratch and learns along; it is no part of the student.

    The two nets tell each other something of images without a label too.

    Args:
        peer: x [B, C, H, W] -> logits [B, num_classes].
    """

    takes_unlabeled = True

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.peer = peer
        self.logged: dict[str, Tensor] = {}

    def forward(self, logits_s: Tensor, target: Tensor, x: Tensor) -> Tensor:
        """`dml_loss` with the peer's logits for the student's input x [B, channels, H, W]; a scalar."""
        logits_p: Tensor = self.peer(x)
        label = target if target.ndim == 1 else target.argmax(dim=1)
        known = _labelled(target)
        right = (logits_p.detach().argmax(dim=1) == label) & known
        self.logged = {"peer_acc": right.sum() / known.sum().clamp(min=1)}
        return dml_loss(logits_s, logits_p, target)
