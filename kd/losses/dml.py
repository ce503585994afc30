"""Deep Mutual Learning (Zhang et al., 2018)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def dml_loss(logits_s: Tensor, logits_p: Tensor, target: Tensor) -> Tensor:
    """KL(p_peer || p_student) + CE(peer) + KL(p_student || p_peer), each the mean over the batch,
    in nats.

    Zhang et al. 2018, eq. 5 to 7, at temperature 1. The first part teaches the student, in addition
    to its own cross-entropy at weight 1. The other two teach the peer. In each KL the teaching net
    is detached. One optimiser updates both nets in the same step; in the paper they take turns.

    Args:
        logits_s: student logits, [B, C].
        logits_p: peer logits, [B, C].
        target: labels, int64 [B], -1 for none; or soft labels [B, C], a row of zeros for none. An
            unlabelled image counts in both KLs but not in the peer's cross-entropy.

    Returns:
        scalar >= 0. At equal logits it is the peer's cross-entropy, not 0.
    """
    log_p_s = F.log_softmax(logits_s, dim=1)
    log_p_p = F.log_softmax(logits_p, dim=1)
    to_student = F.kl_div(log_p_s, log_p_p.detach(), reduction="batchmean", log_target=True)
    to_peer = F.kl_div(log_p_p, log_p_s.detach(), reduction="batchmean", log_target=True)
    ignored: Any = {"ignore_index": -1} if target.ndim == 1 else {}
    labels = F.cross_entropy(logits_p, target, reduction="sum", **ignored)
    return to_student + labels / _label_mask(target).sum().clamp(min=1) + to_peer


def _label_mask(target: Tensor) -> Tensor:
    return target >= 0 if target.ndim == 1 else target.sum(dim=1) > 0


class DML(nn.Module):
    """The loss with a peer net, trained from scratch alongside and no part of the student.

    Unlabelled images count in both KLs.

    Args:
        peer: net, x [B, C, H, W] -> logits [B, num_classes].
    """

    takes_unlabeled = True

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.peer = peer
        self.logged: dict[str, Tensor] = {}

    def forward(self, logits_s: Tensor, target: Tensor, x: Tensor) -> Tensor:
        """Compute `dml_loss` with the peer's logits for the input x [B, channels, H, W]."""
        logits_p: Tensor = self.peer(x)
        label = target if target.ndim == 1 else target.argmax(dim=1)
        known = _label_mask(target)
        right = (logits_p.detach().argmax(dim=1) == label) & known
        self.logged = {"peer_acc": right.sum() / known.sum().clamp(min=1)}
        return dml_loss(logits_s, logits_p, target)
