"""Data sets that torchvision reads, and downloads where there is a network."""

import contextlib
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch

from kd.data.base import DataModule, Images, Source
from kd.errors import UserError

# The last source that was read. Job after job of a sweep asks for the same one, which takes seconds.
_last: dict[tuple[Any, ...] | None, Source] = {}


class TorchvisionReader(DataModule):
    """A data set with a reader in `torchvision.datasets` that holds all images in memory.

    A subclass names the reader, the folder under `root` that it looks in, the files that it expects there, and where
    they come from.
    """

    reader: ClassVar[type[Any]]
    folder: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    origin: ClassVar[str]

    @abstractmethod
    def images(self, data: Any) -> Images:
        """What the reader read, as images."""

    def read(self) -> Source:
        """The official training and test images; what was read last is not read again while its files stay."""
        state = self._state()
        if state is None or state not in _last:
            train, test = self._open(True), self._open(False)
            _last.clear()
            _last[self._state()] = Source(
                self.images(train), self.images(test), tuple(train.classes)
            )
        return _last[self._state()]

    def _state(self) -> tuple[Any, ...] | None:
        """Which files are there, of which size and time; None where they are not."""
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
        ) as error:  # all of them are met
            why = str(error).strip().splitlines()
            raise UserError(
                f"data.root: {self.reader.__name__} in {place.absolute()} is damaged ({why[0] if why else 'cut off'}); "
                "remove that folder and get it again"
            ) from error

    def _download(self, train: bool, place: Path) -> Any:
        made = [folder for folder in (place, *place.parents) if not folder.exists()]
        try:
            with contextlib.redirect_stdout(
                sys.stderr
            ):  # torchvision announces its downloads there
                return self.reader(str(self.root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            why = str(error).strip().splitlines()[0]
            for folder in made:  # torchvision makes some of them before it asks for the network
                with contextlib.suppress(OSError):  # not empty, or not there
                    folder.rmdir()
            raise UserError(
                f"data.root: no {self.reader.__name__} in {place.absolute()}, and it could not be downloaded ({why}).\n"
                f"  Expected there are the files {', '.join(self.files)}.\n"
                f"  Get them from {self.origin} on a machine with a network and put them there, or point data.root or "
                f"KD_DATA_DIR at a folder that holds {self.folder}."
            ) from error


class CIFAR(TorchvisionReader):
    """Arrays [N, H, W, C], in files whose MD5 sums torchvision checks."""

    def images(self, data: Any) -> Images:
        """uint8 [N, 3, 32, 32]."""
        return Images(
            torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
        )


class IDX(TorchvisionReader):
    """Tensors [N, H, W] of gray levels, in the files of LeCun's MNIST."""

    files = tuple(
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )

    def images(self, data: Any) -> Images:
        """uint8 [N, 1, 28, 28]."""
        return Images(data.data[:, None].contiguous(), data.targets.long())
