"""Batches of images by position, and their order."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kd.data.crops import read_pixels
from kd.data.images import Images
from kd.data.views import Augment, view_number

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
        smallest = self.augment.resized_crop
        pixels = read_pixels(self.images, index, seed=self.seed, view=view, smallest=smallest)
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
        labels: of all images, negative for none; each class is then shown equally often, and
            unlabelled images once. None shows all images equally often.
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
        labels: Sequence[int] | None = None,
    ) -> None:
        self.chosen = np.arange(size) if chosen is None else np.asarray(chosen)
        self.length = len(self.chosen) if length is None else length
        self.batch_size = batch_size
        self.seed = seed
        self.ranks = ranks
        self.drop_last = drop_last
        self.stride = stride
        self.classes: dict[int, NDArray[np.int64]] | None = None  # positions by label
        if labels is not None:
            known = np.maximum(np.asarray(labels)[self.chosen], -1)
            self.classes = {int(label): self.chosen[known == label] for label in np.unique(known)}
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        mine = self.length // self.ranks
        return mine // self.batch_size if self.drop_last else -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        if self.classes is None:
            order = self._rounds(self.chosen, self.length, generator)
        else:
            order = self._class_rounds(self.classes, generator)
        mine = order[rank() : self.length // self.ranks * self.ranks : self.ranks]
        size = self.batch_size if self.drop_last else len(mine) / max(1, len(self))
        for batch in range(len(self)):
            yield mine[round(batch * size) : round((batch + 1) * size)].tolist()

    def _rounds(
        self, positions: NDArray[np.int64], count: int, generator: torch.Generator
    ) -> NDArray[np.int64]:
        """Return `count` positions: permutations of all, one after the other."""
        rounds = [
            i * self.stride + positions[torch.randperm(len(positions), generator=generator).numpy()]
            for i in range(-(-count // max(1, len(positions))))
        ]
        return np.concatenate([positions[:0], *rounds])[:count]

    def _class_rounds(
        self, classes: Mapping[int, NDArray[np.int64]], generator: torch.Generator
    ) -> NDArray[np.int64]:
        """Return an epoch with equally many images of each class, which differ by one at most."""
        unlabelled = classes.get(-1, self.chosen[:0])
        rounds = [self._rounds(unlabelled, len(unlabelled), generator)]
        labels = sorted(classes.keys() - {-1})
        share, left = divmod(self.length - len(unlabelled), max(1, len(labels)))
        for i, label in enumerate(labels):
            more = (i - self.epoch) % len(labels) < left  # other classes in each epoch
            rounds.append(self._rounds(classes[label], share + more, generator))
        order = np.concatenate(rounds)
        shuffled: NDArray[np.int64] = order[torch.randperm(len(order), generator=generator).numpy()]
        return shuffled


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
