"""Images decoded from their files at each access."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from kd.data.decode import DecodeError, Reading, decode, threads
from kd.data.folder import plain
from kd.data.images import Facts, digest_of
from kd.errors import DamagedError


class FileRows:
    """Image files by row; only facts stay in memory.

    Args:
        files: one per row.
        shape: number of images, channels, height, width.
        facts: of the decoded files; each image read is checked against them.
    """

    def __init__(
        self,
        files: Sequence[Path],
        shape: tuple[int, int, int, int],
        reading: Reading,
        facts: Facts,
    ) -> None:
        self.files = files
        self.shape = shape
        self.reading = reading
        self.facts = facts

    def read(self, rows: Tensor) -> Tensor:
        """Decode the images of these rows, int64 [B], to uint8 [B, C, H, W], on all cores.

        Raises:
            DamagedError: a file has changed since the run started, or is missing.
        """
        with ThreadPoolExecutor(threads()) as pool:
            images = list(pool.map(self._image, rows.tolist()))
        return torch.stack(images) if images else torch.zeros(0, *self.shape[1:], dtype=torch.uint8)

    def _image(self, row: int) -> Tensor:
        _, channels, size, _ = self.shape
        file = self.files[row]
        try:
            image = decode(file, size, channels, self.reading)
        except DecodeError as error:
            name = plain(str(file))
            raise DamagedError(f"{name}: {error}; it could be decoded before") from error
        if digest_of(image) != self.facts.digests[row].numpy().tobytes():
            name = plain(str(file))
            raise DamagedError(f"{name} changed since it was read first; start the run again")
        return torch.from_numpy(image)
