"""Nearest neighbours of embeddings: how good a net is without its last layer."""

import torch
from torch import Tensor, nn

from kd.nets.hooks import FeatureHooks
from kd.nets.layer_paths import study
from kd.shape import Shape

TEMPERATURE = 0.07  # as in InstDisc and DINO
BLOCK = 2**24  # cosines at a time, 64 MB


class PooledEmbedding(nn.Module):
    """Net whose output is what its last linear layer gets, float32 [B, D].

    Raises:
        UserError: it does not end in one linear layer.
    """

    def __init__(self, net: nn.Module, shape: Shape, where: str) -> None:
        super().__init__()
        self.net = net
        self.hooks = FeatureHooks(net, study(net, [], shape, where=where), ["pooled"])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the embeddings of normalised images [B, C, H, W]."""
        pooled = self.hooks(self.net, x).features["pooled"]
        assert isinstance(pooled, Tensor)
        return pooled


def knn_accuracy(
    known: tuple[Tensor, Tensor],
    asked: tuple[Tensor, Tensor],
    k: int,
    temperature: float = TEMPERATURE,
) -> float:
    """Compute the accuracy of a weighted vote of the k nearest neighbours, a fraction.

    A neighbour counts exp(cosine / temperature) for its class. Wu et al. 2018, "Unsupervised
    Feature Learning via Non-Parametric Instance Discrimination", section 3.4; Caron et al. 2021,
    DINO, takes k = 20.

    Args:
        known: embeddings [N, D] and labels int64 [N] that may vote.
        asked: those to classify, [M, D] and [M].
        k: number of neighbours; no more than N.
    """
    keys = nn.functional.normalize(known[0].double(), dim=1).T
    labels = known[1]
    classes = int(torch.cat([labels, asked[1]]).max()) + 1
    right = 0
    blocks = (torch.split(each, max(1, BLOCK // len(labels))) for each in asked)
    for rows, truth in zip(*blocks, strict=True):
        cosines, nearest = (nn.functional.normalize(rows.double(), dim=1) @ keys).topk(k)
        votes = torch.zeros(len(rows), classes, dtype=torch.float64)
        votes.scatter_add_(1, labels[nearest], (cosines / temperature).exp())
        right += int((votes.argmax(1) == truth).sum())
    return right / len(asked[1])
