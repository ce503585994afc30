"""Embeddings gathered across ranks, shared by the losses with a memory."""

import torch
import torch.distributed as dist
from torch import Tensor


def together() -> bool:
    """Whether several ranks train."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def from_all_ranks(tensor: Tensor) -> Tensor:
    """Concatenate the ranks' batches [B, ...], which are equally large."""
    if not together():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
