"""Batches of images by position, and their order."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kd.data.images import Images
from kd.data.views import Augment, read_pixels, view_number

# Pixels uint8 [B, C, H, W], labels int64 [B], indices int64 [B]
Batch = tuple[Tensor, Tensor, Tensor]


class Gather(Dataset[Batch]):
    """Dataset of batches, indexed by lists of positions."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        index = torch.as_tensor(positions, dtype=torch.int64)
        where = index % len(self.images)  # rounds of an epoch, numbered as in `EpochOrder`
        return self.images.pixels[where], self.images.labels[where], index


class GatherViews(Dataset[Batch]):
    """Like `Gather`, for training: reads what the views are made of.

    Args:
        seed, augment: of the views.
    """

    def __init__(self, images: Images, seed: int, augment: Augment) -> None:
        self.images = images
        self.seed = seed
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, turn: tuple[int, Sequence[int]]) -> Batch:
        view, positions = turn
        index = torch.as_tensor(positions, dtype=torch.int64)
        labels = self.images.labels[index % len(self.images)]
        pixels = read_pixels(self.images, index, seed=self.seed, view=view, augment=self.augment)
        return pixels, labels, index


def rank() -> int:
    """Return the rank of this process; it is known only once the process group exists."""
    return (
        torch.distributed.get_rank()
        if torch.distributed.is_available() and torch.distributed.is_initialized()
        else 0
    )


class EpochOrder(Sampler[list[int]]):
    """Batches of positions: a permutation seeded by (seed, epoch), dealt equally to the ranks.

    Images that do not fill a batch on every rank are left out of that epoch; the next leaves out
    others. Without `drop_last` all are shown: one batch more, and all batches of nearly equal size,
    so that none is of a single image.

    Args:
        size: number of images.
        chosen: positions of the images to show; None shows all.
        length: images per epoch, None for each once. Above the number of images they repeat in
            another order.
        drop_last: whether images that fill no batch are left out. At most one less than there are
            ranks is left out otherwise.
        stride: added to a position in each round of an epoch, so that its views differ.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        ranks: int = 1,
        *,
        chosen: Sequence[int] | None = None,
        length: int | None = None,
        drop_last: bool = True,
        stride: int = 0,
    ) -> None:
        self.chosen = range(size) if chosen is None else chosen
        self.length = len(self.chosen) if length is None else length
        self.batch_size = batch_size
        self.seed = seed
        self.ranks = ranks
        self.drop_last = drop_last
        self.stride = stride
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        mine = self.length // self.ranks
        return mine // self.batch_size if self.drop_last else -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order: list[int] = []
        while len(order) < self.length:
            start = len(order) // len(self.chosen) * self.stride
            turns = torch.randperm(len(self.chosen), generator=generator).tolist()
            order += [start + self.chosen[turn] for turn in turns]
        mine = order[rank() : self.length // self.ranks * self.ranks : self.ranks]
        size = self.batch_size if self.drop_last else len(mine) / max(1, len(self))
        for batch in range(len(self)):
            yield mine[round(batch * size) : round((batch + 1) * size)]


class InViews(Sampler[tuple[int, list[int]]]):
    """Batches of an epoch, each with the number of its view.

    Args:
        cycle: number of views that repeat; None for a new one in each epoch.
    """

    def __init__(self, order: EpochOrder, cycle: int | None) -> None:
        self.order = order
        self.cycle = cycle

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        view = view_number(self.order.epoch, self.cycle)
        return ((view, positions) for positions in self.order)


class InOrder(Sampler[list[int]]):
    """Batches of all positions in order, dealt to the ranks; the last batch may be smaller."""

    def __init__(self, size: int, batch_size: int, ranks: int = 1) -> None:
        self.size = size
        self.batch_size = batch_size
        self.ranks = ranks

    def __len__(self) -> int:
        return -(-len(range(rank(), self.size, self.ranks)) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        mine = range(rank(), self.size, self.ranks)
        for start in range(0, len(mine), self.batch_size):
            yield list(mine[start : start + self.batch_size])


class Loader(DataLoader[Batch]):
    """Loader with its own generator for worker seeds: resuming must not shift the model's draws."""

    def __getstate__(self) -> dict[str, object]:
        # Is not sent to the processes of a distributed training
        return {
            **self.__dict__,
            "generator": None,
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update({**state, "generator": torch.Generator()})
