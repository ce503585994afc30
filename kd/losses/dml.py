"""Deep Mutual Learning (Zhang et al., 2018)."""

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
        target: labels, int64 [B]; or soft labels [B, C].

    Returns:
        scalar >= 0. At equal logits it is the peer's cross-entropy, not 0.
    """
    log_p_s, log_p_p = F.log_softmax(logits_s, dim=1), F.log_softmax(logits_p, dim=1)
    to_student = F.kl_div(log_p_s, log_p_p.detach(), reduction="batchmean", log_target=True)
    to_peer = F.kl_div(log_p_p, log_p_s.detach(), reduction="batchmean", log_target=True)
    return to_student + F.cross_entropy(logits_p, target) + to_peer


class DML(nn.Module):
    """The loss with the peer net, which starts from scratch and learns along; it is no part of the student.

    Args:
        peer: x [B, C, H, W] -> logits [B, num_classes].
    """

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.peer = peer
        self.logged: dict[str, Tensor] = {}

    def forward(self, logits_s: Tensor, target: Tensor, x: Tensor) -> Tensor:
        """`dml_loss` with the peer's logits for the student's input x [B, channels, H, W]; a scalar."""
        logits_p: Tensor = self.peer(x)
        label = target if target.ndim == 1 else target.argmax(dim=1)
        self.logged = {"peer_acc": (logits_p.detach().argmax(dim=1) == label).float().mean()}
        return dml_loss(logits_s, logits_p, target)
