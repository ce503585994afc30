"""Batches of images by their positions, and the order that they come in."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kd.data.images import Images

Batch = tuple[
    Tensor, Tensor, Tensor
]  # pixels uint8 [B, C, H, W], labels int64 [B], indices int64 [B]


class Gather(Dataset[Batch]):
    """Batches by their positions."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        index = torch.as_tensor(positions, dtype=torch.int64)
        return self.images.pixels[index], self.images.labels[index], index


def rank() -> int:
    """This process's place among those that train together; known only once they have met."""
    return (
        torch.distributed.get_rank()
        if torch.distributed.is_available() and torch.distributed.is_initialized()
        else 0
    )


class EpochOrder(Sampler[list[int]]):
    """Batches of positions: a permutation seeded by (seed, epoch), cut into equal batches, ranks taking turns.

    What does not fill a batch on every rank is left out of that epoch; the next epoch leaves out others.
    """

    def __init__(self, size: int, batch_size: int, seed: int, ranks: int = 1) -> None:
        self.size, self.batch_size, self.seed, self.ranks = size, batch_size, seed, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.ranks)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.size, generator=generator).tolist()
        step = self.batch_size * self.ranks
        for start in range(0, len(self) * step, step):
            yield order[start + rank() : start + step : self.ranks]


class InOrder(Sampler[list[int]]):
    """Batches of all positions in order, ranks taking turns; the last batch may be smaller."""

    def __init__(self, size: int, batch_size: int, ranks: int = 1) -> None:
        self.size, self.batch_size, self.ranks = size, batch_size, ranks

    def __len__(self) -> int:
        return -(-len(range(rank(), self.size, self.ranks)) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        mine = range(rank(), self.size, self.ranks)
        for start in range(0, len(mine), self.batch_size):
            yield list(mine[start : start + self.batch_size])


class Loader(DataLoader[Batch]):
    """Draws the seeds of its workers from a generator of its own: it does so at other times after a resume, and what a
    net draws by itself must not move with that.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "generator": None,
        }  # which does not go to the processes of a distributed training

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "generator": torch.Generator()})
