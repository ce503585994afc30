"""Discriminative and Consistent Representation Distillation (Giakoumoglou & Stathaki, 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import unit


def dcd_loss(scores: Tensor, consistency: float = 0.5) -> Tensor:
    """Contrastive loss plus `consistency` times the KL of two ways to read the scores, mean over
    the batch, in nats.

    Giakoumoglou & Stathaki 2024 (arXiv 2407.11802), section 3. The first part is the cross-entropy
    of finding an image's own teacher embedding among those of the batch. The second is the KL of
    the student's choice among teachers (rows) from the teacher's among students (columns).

    Args:
        scores: similarity of student embedding i and teacher embedding j over the temperature,
            [B, B].
        consistency: weight of the second part; the authors' alpha.

    Returns:
        scalar >= 0. Its minimum is not 0.
    """
    own = torch.arange(len(scores), device=scores.device)
    rows = F.log_softmax(scores, dim=1)
    columns = F.log_softmax(scores, dim=0).T
    contrast = F.nll_loss(rows, own)
    return contrast + consistency * F.kl_div(rows, columns, reduction="batchmean", log_target=True)


class DCD(nn.Module):
    """The loss with a linear embedding for each net and a learned temperature.

    Scores are cosines times exp(scale), at most `most`. The paper adds a learned bias to all
    scores; it cancels in both parts and is left out. The loss compares the images of a batch, on
    each device separately.

    Args:
        feat_dim: width of the embeddings.
        consistency: as in `dcd_loss`.
        scale: initial logarithm of the factor.
        most: largest factor, > 0.
    """

    def __init__(
        self,
        width_s: int,
        width_t: int,
        feat_dim: int = 128,
        consistency: float = 0.5,
        scale: float = 1.0,
        most: float = 10.0,
    ) -> None:
        super().__init__()
        if feat_dim < 1 or most <= 0:
            raise ValueError(f"found feat_dim {feat_dim}, most {most}; accepted are those above 0")
        self.consistency = consistency
        self.most = most
        self.embed_s = nn.Linear(width_s, feat_dim)
        self.embed_t = nn.Linear(width_t, feat_dim)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, pooled_s: Tensor, pooled_t: Tensor) -> Tensor:
        """Compute `dcd_loss` of embeddings [B, D] and [B, E], the teacher's detached; a scalar."""
        v_s = unit(self.embed_s(pooled_s))
        v_t = unit(self.embed_t(pooled_t.detach()))
        factor = self.scale.exp().clamp(max=self.most)
        return dcd_loss(v_s @ v_t.T * factor, self.consistency)
