"""Images at another size: of files decoded again, of arrays resized at each access."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.data.decode import Box, Reading, resize_array
from kd.data.images import Facts, ImageRows, Images, Originals, Pixels
from kd.shape import height_and_width


class RowsAtSize:
    """Arrays in memory, resized when they are read. They are their own originals.

    Args:
        size: height and width of the result, in pixels.
    """

    originals: Originals | None = None

    def __init__(self, store: ImageRows, size: tuple[int, int], reading: Reading) -> None:
        self.store = store
        self.size = size
        self.reading = reading
        self.others: dict[object, ImageRows] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels, height, width."""
        return *self.store.shape[:2], *self.size

    @cached_property
    def facts(self) -> Facts:
        """Facts of the images, from those of the arrays; the sums are estimates."""
        facts = self.store.facts
        how = f"{self.size} {self.reading}".encode()
        digests = [
            hashlib.sha256(digest.tobytes() + how).digest()[:16] for digest in facts.digests.numpy()
        ]
        larger = np.prod(self.size) / np.prod(self.store.shape[2:])
        sums, squares = ((each * larger).round().long() for each in (facts.sums, facts.squares))
        found = torch.from_numpy(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16).copy())
        return replace(facts, digests=found, sums=sums, squares=squares)

    def read(self, rows: Tensor) -> Tensor:
        """Resize the images of these rows, int64 [B], to uint8 [B, C, H, W]."""
        return self._resize(rows, [None] * len(rows))

    def crop(self, rows: Tensor, boxes: Tensor) -> Tensor:
        """Resize a box of each array, int64 [B, 4]."""
        return self._resize(rows, [(t, left, h, w) for t, left, h, w in boxes.tolist()])

    def _resize(self, rows: Tensor, boxes: Sequence[Box | None]) -> Tensor:
        arrays = self.store.read(rows).numpy()
        found = [
            torch.from_numpy(resize_array(array, self.size, self.reading, box))
            for array, box in zip(arrays, boxes, strict=True)
        ]
        empty = torch.zeros(0, *self.shape[1:], dtype=torch.uint8)
        return torch.stack(found) if found else empty


def as_read(images: Images, reads: Mapping[str, Any] | None) -> Images:
    """Return images as another net reads them, such as a teacher at its own size.

    Args:
        reads: `image_size`, and the attributes of `kd.data.decode.Reading`; None changes nothing.
    """
    if reads is None:
        return images
    options = dict(reads)
    size = height_and_width(options.pop("image_size"))
    stores = [_store_at(store, size, Reading(**options)) for store in images.pixels.stores]
    pixels = Pixels(stores, images.pixels.rows)
    return Images(pixels, images.labels, images.groups, images.names)


def _store_at(store: ImageRows, size: tuple[int, int], reading: Reading) -> ImageRows:
    """Return a store at another size, the same one each time."""
    how = (size, reading)
    if how not in store.others:
        of_files = store.originals
        found = of_files.at_size(size, reading) if of_files else RowsAtSize(store, size, reading)
        found.others[how] = found  # read so again, it stays
        store.others[how] = found
    return store.others[how]
