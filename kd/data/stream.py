"""Images decoded from their files at each access."""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.data.decode import DecodeError, Reading, decode
from kd.data.image_bytes import ENDS, EncodedImages
from kd.data.images import Facts, ImageRows, digest_of
from kd.data.in_threads import in_threads
from kd.errors import DamagedError


def source_digest(data: bytes) -> bytes:
    """Return the first half of the SHA-256 of a file's bytes, 16 bytes."""
    return hashlib.sha256(data).digest()[:16]


@dataclass(frozen=True)
class DecodedAgain:
    """Originals of images, each decoded whenever a part of it is wanted, on all cores.

    Attributes:
        files: one per row.
        channels: 3 for RGB, 1 for gray.
        facts: of the files when they were first read; each is checked against them.
        again: decodes all files, by `size` and `reading`; as `kd.data.cache.Cache.decode_files`.
    """

    files: EncodedImages
    channels: int
    reading: Reading
    facts: Facts
    again: Callable[..., Any]

    def at_size(self, size: tuple[int, int], reading: Reading) -> ImageRows:
        """Return the images at another size, through the same cache."""
        found: ImageRows = self.again(size=size, reading=reading).store
        return found

    def crop(self, rows: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
        """Decode boxes of the originals, int64 [B, 4], at one size; like `ImageRows.crop`.

        Raises:
            DamagedError: a file has changed since the run started, or is missing.
        """
        height, width = size
        where = list(zip(rows.tolist(), boxes.tolist(), strict=True))

        def one(number: int) -> NDArray[np.uint8]:
            row, box = where[number]
            data = self.read(row)
            self.check(row, data)
            top, left, high, wide = box
            return self.decode(row, data, (height, width), (top, left, high, wide))

        return batch_of(one, (len(where), self.channels, height, width))

    @cached_property
    def _marks(self) -> NDArray[np.int64]:
        """Checksum of length and both ends by file; -1 for files not checked yet."""
        return np.full(len(self.files), -1)

    def check(self, row: int, data: bytes) -> None:
        """Check that a row's file is the same: all its bytes at first, then its length and both
        ends, as that takes an eighth of the time. A change of other bytes alone is not noticed
        then.

        Raises:
            DamagedError: it has changed.
        """
        mark = zlib.crc32(data[-ENDS:], zlib.crc32(data[:ENDS], len(data)))
        if mark == self._marks[row]:
            return
        if source_digest(data) != self.facts.sources[row].numpy().tobytes():
            raise self.change(row)
        self._marks[row] = mark

    def decode(
        self,
        row: int,
        data: bytes,
        size: tuple[int, int],
        box: tuple[int, int, int, int] | None = None,
    ) -> NDArray[np.uint8]:
        """Decode a row's file, which could be decoded before."""
        try:
            return decode(data, size, self.channels, self.reading, box=box)
        except DecodeError as error:
            raise DamagedError(
                f"{self.files.name(row)}: {error}; it could be decoded before"
            ) from error

    def read(self, row: int) -> bytes:
        """Read a row's file."""
        try:
            return self.files.read(row)
        except OSError as error:
            why = error.strerror or str(error)
            raise DamagedError(
                f"{self.files.name(row)}: {why}; it could be decoded before"
            ) from error

    def change(self, row: int) -> DamagedError:
        """Build the error for a file that is not what it was."""
        return DamagedError(
            f"{self.files.name(row)} changed since it was read first; start the run again"
        )


class FileRows:
    """Image files by row; only facts stay in memory.

    Args:
        shape: number of images, channels, height, width.
    """

    def __init__(self, originals: DecodedAgain, shape: tuple[int, int, int, int]) -> None:
        self.originals = originals
        self.shape = shape
        self.others: dict[object, ImageRows] = {}

    @property
    def facts(self) -> Facts:
        """Facts of the images."""
        return self.originals.facts

    def read(self, rows: Tensor) -> Tensor:
        """Decode the images of these rows, int64 [B], to uint8 [B, C, H, W], on all cores.

        Raises:
            DamagedError: a file has changed since the run started, or is missing.
        """
        where = rows.tolist()
        return batch_of(lambda number: self._image(where[number]), (len(where), *self.shape[1:]))

    def crop(self, rows: Tensor, boxes: Tensor) -> Tensor:
        """Decode a box of each original, int64 [B, 4], at the images' size."""
        return self.originals.crop(rows, boxes, self.shape[2:])

    def _image(self, row: int) -> NDArray[np.uint8]:
        image = self.originals.decode(row, self.originals.read(row), self.shape[2:])
        if digest_of(image) != self.facts.digests[row].numpy().tobytes():
            raise self.originals.change(row)
        return image


def batch_of(one: Callable[[int], NDArray[np.uint8]], shape: tuple[int, ...]) -> Tensor:
    """Make a batch of images, uint8 [B, C, H, W], in threads.

    Args:
        one: returns an image by its number in the batch.
    """
    batch = np.empty(shape, np.uint8)

    def fill(number: int) -> None:
        batch[number] = one(number)

    for _ in in_threads(fill, len(batch)):
        pass
    return torch.from_numpy(batch)
