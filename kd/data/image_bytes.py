"""Encoded images (JPEG, PNG, ...) by number, wherever they lie."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from kd.data.folder import plain
from kd.data.in_threads import in_threads
from kd.data.texts import Texts

ENDS = 4096  # bytes at each end of a file that enter its state


class EncodedImages(ABC):
    """Encoded images by number.

    A source of its own implements `__len__` and `read`. What it returns must pickle, as loader
    processes get a copy.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, number: int) -> bytes:
        """Return the encoded image, whole.

        Raises:
            OSError: it cannot be read.
        """

    def name(self, number: int) -> str:
        """Return the image's name in messages."""
        return str(number)

    def state(self, number: int) -> bytes:
        """Return what changes whenever the image does; by default a hash of all its bytes."""
        try:
            return hashlib.sha256(self.read(number)).digest()
        except OSError:
            return b"unreadable"

    @property
    def place(self) -> str:
        """Where the images lie, for messages."""
        return type(self).__name__

    def fingerprint(self) -> bytes:
        """Return a hash of all states, read by several threads."""
        digest = hashlib.sha256()
        for state in in_threads(self.state, len(self)):
            digest.update(state)
        return digest.digest()


class ImagePaths(EncodedImages):
    """One file per image. Of a path only what differs is kept: a million take some 100 MB."""

    def __init__(self, paths: Sequence[Path | str]) -> None:
        folder = ""
        for i, path in enumerate(paths):
            parent = os.path.dirname(str(path))
            if i == 0:
                folder = parent
            elif parent != folder:
                folder = os.path.commonpath((folder, parent))
        self._folder = os.path.join(folder, "")
        self._names = Texts(str(path)[len(self._folder) :] for path in paths)

    def __len__(self) -> int:
        return len(self._names)

    def path(self, number: int) -> Path:
        """Return an image's file."""
        return Path(self._folder + self._names[number])

    def read(self, number: int) -> bytes:
        """Return the file's bytes."""
        with open(self._folder + self._names[number], "rb", buffering=0) as stream:
            return stream.read()

    def name(self, number: int) -> str:
        """Return the path."""
        return plain(str(self.path(number)))

    @property
    def place(self) -> str:
        """The folder of all."""
        return plain(str(Path(self._folder).absolute()))

    def state(self, number: int) -> bytes:
        """Return relative path, size, modification time and a hash of both ends of the file.

        The folder's own place does not count: copies and hard links that keep the files' times are
        the same images. The hash notices a file that was replaced with its times kept.
        """
        return os.fsencode(f"/{self._names[number]}") + b"\0" + state_of(self.path(number))


def state_of(path: Path) -> bytes:
    """Return size, modification time and a hash of the first and last 4 KB of a file."""
    try:
        with path.open("rb", buffering=0) as stream:
            found = os.fstat(stream.fileno())
            ends = stream.read(ENDS)
            if found.st_size > ENDS:
                stream.seek(max(ENDS, found.st_size - ENDS))
                ends += stream.read(ENDS)
    except OSError:
        return b"unreadable"
    return f"{found.st_size} {found.st_mtime_ns} ".encode() + hashlib.sha256(ends).digest()
