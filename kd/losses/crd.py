"""Contrastive Representation Distillation (Tian, Krishnan & Isola, 2020)."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kd.losses._maps import unit
from kd.losses._ranks import from_all_ranks, together

EPSILON = 1e-7


def crd_loss(positive: Tensor, negatives: Tensor, images: int) -> Tensor:
    """-[log P / (P + K/N) + sum over the K negatives of log (K/N) / (P' + K/N)], mean over the
    batch, in nats.

    Tian, Krishnan & Isola 2020, section 3, by noise-contrastive estimation as in the authors' code,
    which adds 1e-7 to the denominators. The loss separates an image's own embedding in the other
    net from those of other classes.

    Args:
        positive: normalised score P of an image with itself, [B], > 0.
        negatives: normalised scores P' of K other images, [B, K], > 0.
        images: number N of images in the memory.

    Returns:
        scalar >= 0. Its minimum is not 0.
    """
    noise = negatives.shape[1] / images
    own = (positive / (positive + noise + EPSILON)).log()
    others = (noise / (negatives + noise + EPSILON)).log().sum(1)
    return -(own + others).mean()


class CRD(nn.Module):
    """The loss with a learned embedding and a memory of all training images for each net.

    Negatives are drawn per image, uniformly and with replacement, from the images of other classes.
    An unlabelled image has all images as negatives. Scores are divided by a constant, N times the
    mean score of the first batch. Memories and constants are part of the checkpoint. New embeddings
    are gathered across ranks, so all ranks hold the same memories; each rank scores its own batch.

    Args:
        feat_dim: width of the embeddings.
        nce_k: negatives per image; at most the number of images.
        nce_t: temperature of the scores, > 0.
        nce_m: share of the old embedding in the memory update, in [0, 1).
    """

    bank_s: Tensor
    bank_t: Tensor
    scale: Tensor
    labels: Tensor
    order: Tensor
    first: Tensor
    count: Tensor

    def __init__(
        self,
        width_s: int,
        width_t: int,
        labels: Tensor,
        feat_dim: int = 128,
        nce_k: int = 16384,
        nce_t: float = 0.07,
        nce_m: float = 0.5,
    ) -> None:
        super().__init__()
        if nce_t <= 0 or not 0 <= nce_m < 1 or nce_k < 1 or feat_dim < 1:
            raise ValueError(
                f"found nce_t {nce_t}, nce_m {nce_m}, nce_k {nce_k}, feat_dim {feat_dim}"
            )
        self.draws = min(nce_k, len(labels))
        self.temperature = nce_t
        self.momentum = nce_m
        self.embed_s = nn.Linear(width_s, feat_dim)
        self.embed_t = nn.Linear(width_t, feat_dim)
        reach = 1 / math.sqrt(feat_dim / 3)
        for name in ("bank_s", "bank_t"):
            self.register_buffer(name, torch.empty(len(labels), feat_dim).uniform_(-reach, reach))
        # For student and teacher scores; 0 until the first batch
        self.register_buffer("scale", torch.zeros(2))
        # Image indices sorted by class: the images of all other classes form two slices.
        hidden = int((labels < -1).sum())  # images that are never shown are no negatives
        known = {"labels": labels, "order": labels.argsort(stable=True)[hidden:]}
        counts = torch.bincount(labels[labels >= 0], minlength=1)
        known |= {"count": counts, "first": int((labels == -1).sum()) + counts.cumsum(0) - counts}
        for name, tensor in known.items():
            self.register_buffer(name, tensor.clone(), persistent=False)

    def forward(self, pooled_s: Tensor, pooled_t: Tensor, index: Tensor) -> Tensor:
        """Compute `crd_loss` both ways: each net's embedding against the other's memory; a scalar.

        Args:
            pooled_s: student embeddings, [B, D].
            pooled_t: teacher embeddings of any width, [B, D_t]; detached.
            index: training-set indices of the images, int64 [B].
        """
        v_s = unit(self.embed_s(pooled_s))
        v_t = unit(self.embed_t(pooled_t.detach()))
        negatives = self.negatives(index)
        total = v_s.new_zeros(())
        for side, (v, bank) in enumerate(((v_s, self.bank_t), (v_t, self.bank_s))):
            chosen = torch.cat([index[:, None], negatives], dim=1)
            scores = (v @ bank.clone().T).gather(1, chosen).div(self.temperature).exp()
            normalised = scores / self._scale(side, scores)
            total = total + crd_loss(normalised[:, 0], normalised[:, 1:], len(bank))
        if self.training:
            self._remember(v_s.detach(), v_t.detach(), index)
        return total

    @torch.no_grad()
    def negatives(self, index: Tensor) -> Tensor:
        """Draw for images [B] the positions of K images of other classes, [B, K]."""
        label = self.labels[index]
        known = label >= 0
        count = torch.where(known, self.count[label.clamp(min=0)], 0)
        # With a single class there are no others
        count = torch.where(count == len(self.order), 0, count)
        first = torch.where(known, self.first[label.clamp(min=0)], 0)
        draw = torch.rand(len(index), self.draws, device=index.device, dtype=torch.float64)
        # The same draw for an image wherever it is in the batch
        draw = draw[index.argsort().argsort()]
        place = (draw * (len(self.order) - count)[:, None]).long()
        return self.order[torch.where(place < first[:, None], place, place + count[:, None])]

    @torch.no_grad()
    def _scale(self, side: int, scores: Tensor) -> Tensor:
        if self.scale[side] == 0:
            mean = scores.mean() * len(self.labels)
            if together():
                dist.all_reduce(mean)
                mean /= dist.get_world_size()
            self.scale[side] = mean
        return self.scale[side].clone()

    @torch.no_grad()
    def _remember(self, v_s: Tensor, v_t: Tensor, index: Tensor) -> None:
        index, v_s, v_t = (from_all_ranks(each) for each in (index, v_s, v_t))
        for bank, v in ((self.bank_s, v_s), (self.bank_t, v_t)):
            bank[index] = unit(self.momentum * bank[index] + (1 - self.momentum) * v)
