"""Images for training: rows of uint8 arrays, in memory or memory-mapped, with labels."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from kd.data.decode import AS_STORED, Reading, resize_array
from kd.data.texts import Texts
from kd.errors import DamagedError


@dataclass(frozen=True)
class Facts:
    """Facts about each image, so that any selection is fingerprinted without reading it.

    Attributes:
        digests: uint8 [N, 16], first half of the SHA-256 of an image's pixels.
        sums: int64 [N, C], sums of the pixel values 0 to 255.
        squares: int64 [N, C], sums of the squared pixel values.
        sizes: int32 [N, 2], height and width of the original that it was made from.
        sources: uint8 [N, 16], first half of the SHA-256 of that original's file; of an image
            without a file its digest.
    """

    digests: Tensor
    sums: Tensor
    squares: Tensor
    sizes: Tensor
    sources: Tensor

    @classmethod
    def blank(cls, count: int, channels: int) -> "Facts":
        """Allocate the facts of `count` images."""
        sums, squares = (torch.zeros(count, channels, dtype=torch.int64) for _ in range(2))
        digests, sources = (torch.zeros(count, 16, dtype=torch.uint8) for _ in range(2))
        return cls(digests, sums, squares, torch.zeros(count, 2, dtype=torch.int32), sources)

    @classmethod
    def of(cls, array: NDArray[np.uint8]) -> "Facts":
        """Compute the facts of pixels [N, C, H, W]."""
        facts = cls.blank(*array.shape[:2])
        for position, image in enumerate(array):
            facts.note(position, image)
        facts.sizes[:] = torch.tensor(array.shape[2:])
        return replace(facts, sources=facts.digests)

    def note(self, position: int, image: NDArray[np.uint8]) -> None:
        """Fill in the facts of one image [C, H, W] that are of its pixels."""
        channels = image.reshape(len(image), -1)
        self.digests.numpy()[position] = np.frombuffer(digest_of(image), np.uint8)
        self.sums.numpy()[position] = channels.sum(1, dtype=np.int64)
        # In buffered steps: a widened copy of each image would fragment the memory.
        self.squares.numpy()[position] = np.einsum(
            "cn,cn->c", channels, channels, dtype=np.int64, casting="unsafe"
        )

    @classmethod
    def join(cls, several: Sequence["Facts"]) -> "Facts":
        """Concatenate."""
        return cls(*(torch.cat([getattr(each, name) for each in several]) for name in cls.names()))

    def at(self, rows: Tensor) -> "Facts":
        """Select those of some images, int64 [B]."""
        return Facts(*(getattr(self, name)[rows] for name in self.names()))

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the attributes."""
        return [each.name for each in fields(cls)]

    def save(self, path: Path) -> None:
        """Write them as safetensors."""
        path.write_bytes(save({name: getattr(self, name) for name in self.names()}))

    @classmethod
    def load(cls, path: Path) -> "Facts":
        """Read the file of `save`."""
        return cls(**load_file(path))


def digest_of(image: NDArray[np.uint8]) -> bytes:
    """Return the first half of the SHA-256 of an image's pixels, 16 bytes."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()[:16]


def crop_arrays(pixels: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a box of each image to one size, antialiased, as torchvision's v2 does.

    Args:
        pixels: uint8 [B, C, H, W].
        boxes: top, left, height, width in pixels, int64 [B, 4].
        size: height and width of the result.
    """
    high, wide = size
    found = [
        torch.from_numpy(resize_array(image, (high, wide), AS_STORED, (top, left, height, width)))
        for image, (top, left, height, width) in zip(pixels.numpy(), boxes.tolist(), strict=True)
    ]
    return torch.stack(found) if found else pixels.new_zeros(0, pixels.shape[1], *size)


class Originals(Protocol):
    """The files that images were decoded from, by row."""

    def crop(self, rows: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
        """Decode boxes of the originals, int64 [B, 4]; like `ImageRows.crop`."""

    def at_size(self, size: tuple[int, int], reading: Reading) -> "ImageRows":
        """Return the images at another height and width, read as a `Reading` says."""


class PixelStore:
    """One uint8 array of images with their facts.

    Args:
        array: uint8 [N, C, H, W].
        facts: if already known.
        file: the `.npy` file that `array` is mapped from, with `facts.safetensors` beside it.
        originals: what the images were decoded from; None where the array is all there is.
        twin: such a file with the same images, where `array` is in memory. Other processes map
            `file` or `twin` instead of receiving the pixels.
    """

    def __init__(
        self,
        array: Tensor,
        facts: Facts | None = None,
        file: Path | None = None,
        originals: Originals | None = None,
        twin: Path | None = None,
    ) -> None:
        self.array = array
        self.file = file
        self.twin = twin
        self.originals = originals
        self.others: dict[object, ImageRows] = {}
        self._whole = torch.zeros(len(array), dtype=torch.bool)  # rows already checked
        if facts is not None:
            self.facts = facts

    @cached_property
    def facts(self) -> Facts:
        """Facts of the images, computed at first use."""
        return Facts.of(self.array.numpy())

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels, height, width."""
        count, channels, height, width = self.array.shape
        return count, channels, height, width

    @classmethod
    def from_file(cls, file: Path, originals: Originals | None = None) -> "PixelStore":
        """Map a `.npy` file; pages are loaded on access and released when memory is short."""
        # Copy-on-write, because torch warns of read-only arrays; nothing here writes.
        array = torch.from_numpy(np.load(file, mmap_mode="c"))
        return cls(array, Facts.load(file.with_name("facts.safetensors")), file, originals)

    def read(self, rows: Tensor) -> Tensor:
        """Copy the images of these rows, int64 [B], to uint8 [B, C, H, W].

        Raises:
            DamagedError: an image of a mapped file has changed.
        """
        for row in rows[~self._whole[rows]].tolist() if self.file else ():
            if not self.matches_facts(row):
                folder = self.file.parent  # type: ignore[union-attr]
                raise DamagedError(
                    f"{self.file} is damaged (image {row}); remove {folder} to have it "
                    "decoded again"
                )
            self._whole[row] = True
        # Row by row, since an index would go element by element
        return self.array.index_select(0, rows)

    def crop(self, rows: Tensor, boxes: Tensor) -> Tensor:
        """Resize a box of each original, int64 [B, 4], to the images' size; see `ImageRows`."""
        size = self.shape[2:]
        if self.originals is not None:
            return self.originals.crop(rows, boxes, size)
        return crop_arrays(self.read(rows), boxes, size)

    def matches_facts(self, row: int) -> bool:
        """Check an image against its digest."""
        return digest_of(self.array[row].numpy()) == self.facts.digests[row].numpy().tobytes()

    def __reduce__(self) -> tuple[object, ...]:
        file = self.file or self.twin
        if file is not None and file.exists():
            return (PixelStore.from_file, (file, self.originals))
        return (PixelStore, (self.array, self.facts, None, self.originals))


class ImageRows(Protocol):
    """Images by row: a `PixelStore`, or files decoded at each access (`kd.data.stream`).

    Attributes:
        others: the same images at other sizes; see `kd.data.rendering`.
    """

    others: "dict[object, ImageRows]"

    @property
    def originals(self) -> Originals | None:
        """Files that they were decoded from; None for arrays."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels, height, width."""

    @property
    def facts(self) -> Facts:
        """Facts of the images."""

    def read(self, rows: Tensor) -> Tensor:
        """Copy the images of these rows, int64 [B], to uint8 [B, C, H, W]."""

    def crop(self, rows: Tensor, boxes: Tensor) -> Tensor:
        """Resize a box of each original to the images' size, antialiased.

        Args:
            rows: of the images, int64 [B].
            boxes: top, left, height, width in pixels of the originals, int64 [B, 4].

        Returns:
            uint8 [B, C, H, W].
        """


class Pixels:
    """Selected rows of one or more stores, as one array [N, C, H, W]. Indexing copies images."""

    def __init__(self, stores: Sequence[ImageRows], rows: Tensor) -> None:
        self.stores = tuple(stores)
        self.rows = rows

    @classmethod
    def whole(cls, store: ImageRows) -> "Pixels":
        """Return all rows of a store."""
        return cls([store], torch.arange(store.shape[0]))

    @classmethod
    def join(cls, several: Sequence["Pixels"]) -> "Pixels":
        """Concatenate; all must have one image shape."""
        if all(pixels.stores == several[0].stores for pixels in several):
            return cls(several[0].stores, torch.cat([pixels.rows for pixels in several]))
        stores: list[ImageRows] = []
        rows = []
        start = 0
        for pixels in several:
            rows.append(pixels.rows + start)
            stores += pixels.stores
            start += sum(store.shape[0] for store in pixels.stores)
        return cls(stores, torch.cat(rows))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels, height, width."""
        return len(self), *self.stores[0].shape[1:]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, positions: Tensor) -> "Pixels":
        """Select the images at these positions, int64 [B], without a copy."""
        return Pixels(self.stores, self.rows[positions])

    def __getitem__(self, where: slice | Tensor) -> Tensor:
        rows = self.rows[where]
        return self._gather(rows, lambda store, own, _: store.read(own))

    def crop(self, where: Tensor, boxes: Tensor) -> Tensor:
        """Resize a box of each original, int64 [B, 4]; see `ImageRows.crop`."""
        return self._gather(self.rows[where], lambda store, own, at: store.crop(own, boxes[at]))

    def _gather(
        self, rows: Tensor, read: Callable[[ImageRows, Tensor, Tensor | slice], Tensor]
    ) -> Tensor:
        """Read rows from their stores.

        Args:
            read: gets a store, its own rows, and their places among all.
        """
        if len(self.stores) == 1:
            return read(self.stores[0], rows, slice(None))
        found = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        start = 0
        for store in self.stores:
            mine = ((rows >= start) & (rows < start + store.shape[0])).nonzero()[:, 0]
            found[mine] = read(store, rows[mine] - start, mine)
            start += store.shape[0]
        return found

    @cached_property
    def original_sizes(self) -> Tensor:
        """Height and width of each original, int32 [N, 2]."""
        return self.facts.sizes

    @property
    def batch(self) -> int:
        """Images per batch outside training.

        Fewer for large images, so that activations do not grow with image size. Without a GPU also
        few enough of small ones for activations to stay in the processor's cache.
        """
        _, _, height, width = self.shape
        most = 256 if torch.cuda.is_available() else 64
        return max(1, min(most, 2**20 // (height * width)))

    @property
    def facts(self) -> Facts:
        """Facts of the selected rows."""
        return Facts.join([store.facts for store in self.stores]).at(self.rows)


class Images:
    """Labelled images.

    Args:
        pixels: uint8 [N, C, H, W].
        labels: int64 [N], in [0, number of classes); negative if unlabelled (see
            `kd.data.transfer`). Of multi-label data int8 [N, classes], 1 for each label of an
            image; rows of -1 if unlabelled.
        groups: per image, what a split must not separate (a patient); None if images are
            independent.
        names: per image its name in lists, such as its file; None for its number, from 0.
    """

    def __init__(
        self,
        pixels: Tensor | Pixels,
        labels: Tensor,
        groups: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.pixels = pixels if isinstance(pixels, Pixels) else Pixels.whole(PixelStore(pixels))
        self.labels = labels
        self.groups = groups
        numbers = map(str, range(len(labels)))
        self.names = names if isinstance(names, Texts) else Texts(names or numbers)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def has_label(self) -> Tensor:
        """Which images have a label, or are known to have none; bool [N]."""
        return (self.labels[:, 0] if self.multilabel else self.labels) >= 0

    def __deepcopy__(self, memo: object) -> "Images":
        return self  # never modified, so copies may share it

    def at(self, positions: Sequence[int] | Tensor) -> "Images":
        """Select the images at these positions, int64 [B], without copying pixels."""
        where = torch.as_tensor(positions, dtype=torch.int64)
        groups = None if self.groups is None else [self.groups[i] for i in where.tolist()]
        names = self.names.at(where.numpy())
        return Images(self.pixels.at(where), self.labels[where], groups, names)

    def with_labels(self, labels: Tensor) -> "Images":
        """Copy with other labels, int64 [N]."""
        return Images(self.pixels, labels, self.groups, self.names)

    def join(self, other: "Images") -> "Images":
        """Append other images; groups are kept if both have them."""
        groups = (
            [*self.groups, *other.groups]
            if self.groups is not None and other.groups is not None
            else None
        )
        return Images(
            Pixels.join([self.pixels, other.pixels]),
            torch.cat([self.labels, other.labels]),
            groups,
            Texts(chain(self.names, other.names)),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of shape, pixels and labels, as 64 hexadecimal digits."""
        digest = self._pixels_digest()
        digest.update(self.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def pixel_fingerprint(self) -> str:
        """Return the SHA-256 of shape and pixels, as 64 hexadecimal digits."""
        return self._pixels_digest().hexdigest()

    @cached_property
    def source_fingerprint(self) -> str:
        """Return the SHA-256 of the originals, as 64 hexadecimal digits."""
        facts = self.pixels.facts
        digest = hashlib.sha256(facts.sources.numpy().tobytes())
        digest.update(facts.sizes.numpy().tobytes())
        return digest.hexdigest()

    def _pixels_digest(self) -> "hashlib._Hash":
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(self.pixels.facts.digests.numpy().tobytes())
        return digest

    def moments(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel, pixels in [0, 1]."""
        facts = self.pixels.facts
        (count, _, height, width) = self.pixels.shape
        n = count * height * width
        means = facts.sums.sum(0).double() / n
        variances = facts.squares.sum(0).double() / n - means**2
        return (means / 255).tolist(), (variances.clamp(min=0).sqrt() / 255).tolist()


@dataclass(frozen=True)
class Source:
    """Content of a data set's own files, before anything is carved out.

    Attributes:
        test: official test set; None to carve it out of train.
        val: official validation part; None to carve it out of train.
    """

    train: Images
    test: Images | None
    classes: tuple[str, ...]
    val: Images | None = None


@dataclass(frozen=True)
class Split:
    """The three parts, their classes, and the unlabelled images that may join training."""

    train: Images
    val: Images
    test: Images
    classes: tuple[str, ...]
    unlabeled: Images | None = None
