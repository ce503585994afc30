"""Data sets that torchvision reads, and downloads if there is a network."""

import contextlib
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch

from kd.data.base import DataModule, Images, Source
from kd.errors import UserError

# The last source read: consecutive jobs of a sweep use the same one, and reading takes seconds.
_last: dict[tuple[Any, ...] | None, Source] = {}


class TorchvisionReader(DataModule):
    """Data set with an in-memory reader in `torchvision.datasets`.

    A subclass names the reader, its folder under `root`, the files expected there, and their
    origin.
    """

    reader: ClassVar[type[Any]]
    folder: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    origin: ClassVar[str]

    @abstractmethod
    def images(self, data: Any) -> Images:
        """Convert the reader's data to images."""

    def read(self) -> Source:
        """Read the official training and test images; the last source is kept while its files
        stay.
        """
        state = self._state()
        if state is None or state not in _last:
            train = self._open(True)
            test = self._open(False)
            _last.clear()
            _last[self._state()] = Source(
                self.images(train), self.images(test), tuple(train.classes)
            )
        return _last[self._state()]

    def _state(self) -> tuple[Any, ...] | None:
        """Return the size and time of each file; None if one is missing."""
        try:
            found = [(self.root / self.folder / name).stat() for name in self.files]
        except OSError:
            return None
        times = [(each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found]
        return (type(self), str(self.root.absolute()), *times)

    def _open(self, train: bool) -> Any:
        place = self.root / self.folder
        if not all((place / name).exists() for name in self.files):
            return self._download(train, place)
        try:
            return self.reader(str(self.root), train=train, download=False)
        except (
            OSError,
            RuntimeError,
            AssertionError,
            ValueError,
            EOFError,
        ) as error:  # all of these occur
            why = str(error).strip().splitlines()
            raise UserError(
                f"data.root: {self.reader.__name__} in {place.absolute()} is damaged "
                f"({why[0] if why else 'cut off'}); remove that folder and get it again"
            ) from error

    def _download(self, train: bool, place: Path) -> Any:
        made = [folder for folder in (place, *place.parents) if not folder.exists()]
        try:
            # Torchvision announces its downloads on stdout
            with contextlib.redirect_stdout(sys.stderr):
                return self.reader(str(self.root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            why = str(error).strip().splitlines()[0]
            for folder in made:  # torchvision creates some folders before it connects
                with contextlib.suppress(OSError):  # not empty, or missing
                    folder.rmdir()
            raise UserError(
                f"data.root: no {self.reader.__name__} in {place.absolute()}, and it could "
                f"not be downloaded ({why}).\n  Expected there are the files "
                f"{', '.join(self.files)}.\n  Get them from {self.origin} on a machine with a "
                "network and put them there, or point data.root or KD_DATA_DIR at a folder "
                f"that holds {self.folder}."
            ) from error


class CIFAR(TorchvisionReader):
    """Arrays [N, H, W, C], in files whose MD5 sums torchvision checks."""

    def images(self, data: Any) -> Images:
        """Convert to uint8 [N, 3, 32, 32]."""
        return Images(
            torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
        )


class IDX(TorchvisionReader):
    """Tensors [N, H, W] of gray levels, in files of LeCun's MNIST format."""

    files = tuple(
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )

    def images(self, data: Any) -> Images:
        """Convert to uint8 [N, 1, 28, 28]."""
        return Images(data.data[:, None].contiguous(), data.targets.long())
