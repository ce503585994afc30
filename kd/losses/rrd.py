"""Relational Representation Distillation (Giakoumoglou & Stathaki, 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import unit
from kd.losses._ranks import from_all_ranks


def rrd_loss(
    scores_s: Tensor, scores_t: Tensor, temperature_s: float = 0.1, temperature_t: float = 0.02
) -> Tensor:
    """Cross-entropy of the student's softmax over a memory with the teacher's, mean over the batch,
    in nats.

    Giakoumoglou & Stathaki 2024 (arXiv 2407.12073), section 3. The student should relate an image
    to the images in the memory as the teacher does. The teacher's lower temperature sharpens its
    answer.

    Args:
        scores_s: cosines of the student's embeddings and the K in the memory, [B, K].
        scores_t: those of the teacher's embeddings, [B, K]; detached.
        temperature_s: > 0.
        temperature_t: > 0.

    Returns:
        scalar >= 0. Its minimum is not 0.
    """
    p_t = F.softmax(scores_t.detach() / temperature_t, dim=1)
    return -(p_t * F.log_softmax(scores_s / temperature_s, dim=1)).sum(1).mean()


class RRD(nn.Module):
    """The loss with a linear embedding for each net and a queue of the teacher's embeddings.

    A batch enters the queue before it is compared, and the oldest embeddings leave. As in the
    authors' code no gradient reaches the teacher's embedding, so it stays as it was drawn. The
    queue is part of the checkpoint. New embeddings are gathered across ranks, so all ranks hold the
    same queue.

    Args:
        feat_dim: width of the embeddings.
        nce_k: length K of the queue.
        temperature_s, temperature_t: as in `rrd_loss`.
    """

    queue: Tensor
    place: Tensor

    def __init__(
        self,
        width_s: int,
        width_t: int,
        feat_dim: int = 128,
        nce_k: int = 16384,
        temperature_s: float = 0.1,
        temperature_t: float = 0.02,
    ) -> None:
        super().__init__()
        if feat_dim < 1 or nce_k < 1 or temperature_s <= 0 or temperature_t <= 0:
            raise ValueError(
                f"found feat_dim {feat_dim}, nce_k {nce_k}, temperature_s {temperature_s}, "
                f"temperature_t {temperature_t}; accepted are numbers above 0"
            )
        self.temperature_s = temperature_s
        self.temperature_t = temperature_t
        self.embed_s = nn.Linear(width_s, feat_dim)
        self.embed_t = nn.Linear(width_t, feat_dim).requires_grad_(False)
        # As in the authors' code a column has length 1 at first, so a row is short
        self.register_buffer("queue", unit(torch.randn(nce_k, feat_dim), dim=0))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, pooled_s: Tensor, pooled_t: Tensor) -> Tensor:
        """Compute `rrd_loss` of embeddings [B, D] and [B, E], the teacher's detached; a scalar."""
        v_s = unit(self.embed_s(pooled_s))
        v_t = unit(self.embed_t(pooled_t.detach()))
        if self.training:
            self._remember(from_all_ranks(v_t))
        queue = self.queue.clone()
        return rrd_loss(v_s @ queue.T, v_t @ queue.T, self.temperature_s, self.temperature_t)

    @torch.no_grad()
    def _remember(self, v_t: Tensor) -> None:
        """Overwrite the oldest embeddings with the new [B, feat_dim]."""
        new = v_t[-len(self.queue) :]
        rows = torch.arange(len(new), device=new.device) + self.place
        self.queue[rows % len(self.queue)] = new
        self.place.add_(len(new)).remainder_(len(self.queue))
