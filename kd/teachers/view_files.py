"""Files of teacher outputs: one folder per view, atomic, verified when opened, evicted by age."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kd.files.locks import hold
from kd.files.store import checksum
from kd.log import say
from kd.teachers.answer_record import AnswerRecord

LOGITS, MANIFEST = "logits.npy", "manifest.json"
GB = 10**9

_verified: dict[
    Path, tuple[int, ...]
] = {}  # files that this process has verified, with their state then

_said: set[Path] = set()  # views that were said to be damaged


@dataclass(frozen=True)
class Room:
    """Folder of all teacher outputs, with its size limit.

    Attributes:
        folder: holds one folder per teacher and set of views.
        limit: for everything in it, in GB (10^9 bytes).
    """

    folder: Path
    limit: float


@dataclass(frozen=True)
class ViewFiles:
    """Outputs of one teacher for one set of views, in `<room>/<key>-<device>/view-<n>/`.

    Several processes may use it at once.

    Attributes:
        key: covers all that the outputs depend on, except the view's number.
        rows: number of images.
        record: what is stored of each.
        teacher: key of the teacher's stage, for `kd.store`.
        device: type of the computing device, since last bits differ between devices.
    """

    room: Room
    key: str
    rows: int
    record: AnswerRecord
    teacher: str = ""
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        """Holds one folder per view."""
        return self.room.folder / f"{self.key}-{self.device}"

    def open(self, view: int) -> NDArray[np.generic] | None:
        """Map a view's answers, a row an image, into memory; None if missing, or damaged (logged).

        A file is checked against its checksum when this process first opens it.
        """
        folder = self._folder(view)
        path = folder / LOGITS
        if not folder.exists():
            return None
        try:
            if _verified.get(path) != _state(path):
                state = _state(path)
                self._verify(folder)
                _verified[path] = state
            rows: NDArray[np.generic] = np.load(path, mmap_mode="r")
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Another process may have evicted it meanwhile
            if folder.exists() and folder not in _said:
                _said.add(folder)
                say(f"{folder} is damaged ({error}); computing the teacher's outputs again")
            return None
        with suppress(OSError):  # a read-only folder works as well
            os.utime(folder / MANIFEST)  # time of last use
        return rows

    def claim(self, view: int, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Hold the exclusive right to write a view while the process lives; waits for another
        writer.

        Args:
            wait: False does not wait; the `with` value says whether the right is held.

        Raises:
            WriteError: the folder is not writable.
        """
        return hold(
            self.folder / f"lock-{view}",
            "teacher",
            f"is computing its outputs (view {view})",
            wait=wait,
        )

    def there(self, view: int) -> bool:
        """Whether a view's folder exists, complete or not."""
        return self._folder(view).exists()

    def write(self, view: int, parts: Iterable[NDArray[np.generic]]) -> None:
        """Publish a view atomically, replacing a damaged one; call it under `claim`.

        Args:
            parts: some rows each, as `record` packs them or their bytes, in order.

        Raises:
            OSError: the disk is full or not writable; nothing is left behind.
        """
        final = self._folder(view)
        partial = final.with_name(f"{final.name}.partial")
        for left in (final, partial):  # damaged, or left by a killed process
            shutil.rmtree(left, ignore_errors=True)
        self._make_room()
        partial.mkdir()
        dtype, shape = self.record.layout
        header = {
            "descr": npy.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (self.rows, *shape),
        }
        try:
            with (partial / LOGITS).open(
                "wb"
            ) as file:  # writing to a map on a full disk would kill the process
                npy.write_array_header_1_0(file, header)
                for part in parts:
                    file.write(np.ascontiguousarray(part).view(np.uint8).data)
            manifest = self._manifest() | {
                "sha256": checksum(partial / LOGITS),
                "teacher": self.teacher,
            }
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
            partial.rename(final)
            _said.discard(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _folder(self, view: int) -> Path:
        return self.folder / f"view-{view}"

    def _manifest(self) -> dict[str, object]:
        return {"rows": self.rows, **self.record.manifest}

    def _verify(self, folder: Path) -> None:
        """Raise unless checksum, shape and type of the logits are right."""
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in self._manifest().items():
            if manifest[name] != expected:
                raise ValueError(f"{MANIFEST}: {name} is {manifest[name]}, not {expected}")
        if checksum(folder / LOGITS) != manifest["sha256"]:
            raise ValueError(f"the checksum of {LOGITS} is wrong")

    def _make_room(self) -> None:
        """Evict the least recently used views of others until one more fits; never its own.

        A teacher needs all of its views: evicted in turn, none would be left for the next run.
        """
        needed = self.rows * self.record.bytes
        views = sorted(_views(self.room.folder))
        total = sum(size for _, size, _ in views)
        # Those that other processes are writing
        total += needed * len([*self.folder.glob("view-*.partial")])
        for _, size, folder in views:
            if total + needed > self.room.limit * GB and folder.parent != self.folder:
                _remove(folder)
                total -= size
        if total + needed > self.room.limit * GB:
            raise OSError(errno.EDQUOT, f"teacher.cache_limit of {self.room.limit:g} GB reached")
        # Before hours of computing, not after
        if needed > 0.95 * shutil.disk_usage(self.folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def damage_of(folder: Path) -> str:
    """Return what is wrong with a view, which is read for it; empty if nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if checksum(folder / LOGITS) != manifest["sha256"]:
            return f"the checksum of {LOGITS} is wrong"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return ""


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _views(room: Path) -> Iterator[tuple[int, int, Path]]:
    """Iterate over all views: time of last use, size in bytes, folder."""
    for manifest in room.glob(f"*/view-*/{MANIFEST}"):
        if manifest.parent.suffix != ".partial":
            with suppress(OSError):  # another process may be removing it
                size = (manifest.parent / LOGITS).stat().st_size
                yield manifest.stat().st_mtime_ns, size, manifest.parent


def _remove(folder: Path) -> None:
    """Remove a view atomically; processes that have it mapped keep it."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}")
    with suppress(OSError):  # another process may have done it
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
