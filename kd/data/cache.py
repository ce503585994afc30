"""Cache of decoded files: in memory, or in an array on disk that later runs map at once."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from kd.data.decode import AS_STORED, DecodeError, Reading, Remarks, decode, remarking
from kd.data.image_bytes import EncodedImages, ImagePaths
from kd.data.images import Facts, ImageRows, PixelStore
from kd.data.in_threads import in_threads
from kd.data.stream import DecodedAgain, FileRows, source_digest
from kd.errors import WriteError
from kd.files.locks import free, hold
from kd.files.store import checksum
from kd.files.writing import writing
from kd.log import bytes_of, console, number_of, say
from kd.shape import ImageSize, height_and_width

VERSION = 3  # of the decoded array; raise it when `decode` gives other pixels
MANIFEST, FACTS = "manifest.json", "facts.safetensors"
GB = 1e9
FILL = 0.95  # share of the free disk space that images may take
LARGE = 512 * 2**20  # bytes above which an array stays on disk by default

REMEDY = (
    "make room, raise data.cache_limit, set data.cache_dir to another folder, or "
    "data.cache=stream to decode each time"
)

NAMED = 5  # files named in a note

Mode = Literal["auto", "ram", "disk", "stream", "off"]


class Manifest(TypedDict):
    """What is known of an entry.

    Attributes:
        bad: reason by file position, as a string.
        notes: remarks, as text.
        facts: checksum of the facts on the images.
        pixels: stamp of the array; None without one.
        shape: of the images, [N, channels, height, width].
        place: where the files lie.
    """

    bad: dict[str, str]
    notes: list[str]
    facts: str
    pixels: list[int] | None
    shape: list[int]
    place: str


@dataclass(frozen=True)
class DecodedFiles:
    """Decoded files.

    Attributes:
        store: one row per file, blank if the file gives no image.
        bad: reason by file position.
        notes: remarks, as text.
    """

    store: ImageRows
    bad: dict[int, str]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Cache:
    """Where decoded files are kept.

    Attributes:
        folder: holds one folder per entry, named by what it was made from; None keeps nothing.
        mode: `ram` reads the entry into memory, `disk` maps it. `stream` keeps facts on the images
            alone, and decodes each file whenever it is read: no pixels on disk or in memory. `off`
            keeps nothing and decodes into memory at each start. `auto` is `ram` up to 512 MB, else
            `disk` where there is room within the limit, else `stream`.
        limit: size of all entries, in GB (10^9 bytes). Those unused for longest make room for a new
            one.
    """

    folder: Path | None = None
    mode: Mode = "auto"
    limit: float = 100

    def decode_files(
        self,
        files: Sequence[Path] | EncodedImages,
        size: ImageSize,
        channels: int,
        reading: Reading = AS_STORED,
    ) -> DecodedFiles:
        """Return the images of the files, uint8 [N, channels, height, width], from the cache if
        nothing changed.

        Raises:
            WriteError: the disk has no room for an array that is to be mapped.
        """
        files = files if isinstance(files, EncodedImages) else ImagePaths(files)
        shape = (len(files), channels, *height_and_width(size))
        again = partial(self.decode_files, files, channels=channels)
        if self.folder is None or self.mode == "off":
            array = None if self.mode == "stream" else np.zeros(shape, np.uint8)
            facts, bad, notes = _decode_all(files, shape, array, reading)
            originals = DecodedAgain(files, channels, reading, facts, again)
            if array is None:
                return DecodedFiles(FileRows(originals, shape), bad, notes)
            store = PixelStore(torch.from_numpy(array), facts, originals=originals)
            return DecodedFiles(store, bad, notes)
        entry = self.folder / f"images-{_key(files, shape, reading)}"
        mode = self._choose(entry, int(np.prod(shape)))
        try:
            manifest = _valid(entry, mode)
            if manifest is None:
                with hold(
                    self.folder / f"{entry.name}.lock", "data.cache", "is decoding the images"
                ):
                    manifest = _valid(entry, mode)
                    if manifest is None:
                        if damage_of(entry):
                            say(f"{entry} is damaged; decoding its images again")
                        manifest = self._write(
                            entry, files, shape, reading, pixels=mode != "stream"
                        )
        except WriteError as error:
            if mode != "ram":
                raise WriteError(f"data.cache: {error}; {REMEDY}") from error
            say(f"data.cache: {error}; decoding into memory")
            return Cache().decode_files(files, size, channels, reading)
        bad = {int(i): reason for i, reason in manifest["bad"].items()}
        with suppress(OSError):  # a read-only folder works as well
            os.utime(entry / MANIFEST)  # time of last use
        originals = DecodedAgain(files, channels, reading, Facts.load(entry / FACTS), again)
        return DecodedFiles(_open_rows(entry, mode, originals, shape), bad, manifest["notes"])

    def _choose(self, entry: Path, size: int) -> Mode:
        """Resolve the mode `auto`.

        Args:
            size: of the pixels, in bytes.
        """
        if self.mode != "auto":
            return self.mode
        chosen: Mode = "ram"
        if size > LARGE:
            room = min(self.limit * GB, FILL * shutil.disk_usage(_existing(entry)).free)
            chosen = "disk" if (entry / "pixels.npy").exists() or size <= room else "stream"
        amount = f"{size / GB:.1f} GB" if size >= GB else f"{math.ceil(size / 1e6)} MB"
        say(f"data.cache=auto: {chosen}, as the images take {amount} once decoded")
        return chosen

    def _write(
        self,
        entry: Path,
        files: EncodedImages,
        shape: tuple[int, int, int, int],
        reading: Reading,
        *,
        pixels: bool,
    ) -> Manifest:
        """Decode into a new entry, with or without pixels; it appears complete or not at all."""
        partial = entry.with_name(f"{entry.name}.partial")
        # Left by a killed run; this process holds the lock.
        shutil.rmtree(partial, ignore_errors=True)
        with writing(entry.parent, "decoded images"):
            _make_room(entry.parent, int(np.prod(shape)) if pixels else 0, self.limit)
            partial.mkdir()
            try:
                array = _room(partial / "pixels.npy", shape) if pixels else None
                facts, bad, notes = _decode_all(files, shape, array, reading)
                if array is not None:
                    array.flush()
                    del array
                facts.save(partial / FACTS)
                manifest: Manifest = {
                    "bad": {str(i): reason for i, reason in bad.items()},
                    "notes": notes,
                    "facts": checksum(partial / FACTS),
                    "pixels": _stamp(partial) if pixels else None,
                    "shape": list(shape),
                    "place": files.place,
                }
                (partial / MANIFEST).write_text(json.dumps(manifest))
                shutil.rmtree(entry, ignore_errors=True)
                partial.rename(entry)
            except Exception:
                shutil.rmtree(partial, ignore_errors=True)  # free the space for others
                raise
        return manifest


def _open_rows(
    entry: Path,
    mode: Mode,
    originals: DecodedAgain,
    shape: tuple[int, int, int, int],
) -> ImageRows:
    """Open the images of an entry."""
    if mode == "stream":
        return FileRows(originals, shape)
    if mode == "disk":
        return PixelStore.from_file(entry / "pixels.npy", originals)
    file = entry / "pixels.npy"
    array = torch.from_numpy(np.load(file))
    return PixelStore(array, originals.facts, originals=originals, twin=file)


def _existing(path: Path) -> Path:
    """Return the innermost folder of a path that exists."""
    return next(each for each in path.absolute().parents if each.exists())


def _key(files: EncodedImages, shape: tuple[int, int, int, int], reading: Reading) -> str:
    """Return a hash of the files' states and the way they are decoded."""
    how = f"{VERSION} {PIL.__version__} {shape[1:]} {reading}"
    return hashlib.sha256(how.encode() + files.fingerprint()).hexdigest()[:16]


def _make_room(folder: Path, needed: int, limit: float) -> None:
    """Remove what killed runs left, then entries unused for longest, until a new one fits.

    Args:
        needed: bytes.

    Raises:
        OSError: the new one alone is larger than the limit.
    """
    if needed > limit * GB:
        raise OSError(
            errno.EDQUOT, f"{bytes_of(needed)} are needed, data.cache_limit is {limit:g} GB"
        )
    for left in folder.glob("images-*.partial"):
        with free(folder / f"{left.stem}.lock", remove=False) as mine:
            if mine:  # no other process uses it; this one's own entry is locked
                shutil.rmtree(left, ignore_errors=True)
    kept = []
    for manifest in folder.glob(f"images-*/{MANIFEST}"):
        with suppress(OSError):  # another process may be removing it
            size = sum(file.stat().st_size for file in manifest.parent.iterdir())
            kept.append((manifest.stat().st_mtime_ns, size, manifest.parent))
    total = needed + sum(size for _, size, _ in kept)
    for _, size, entry in sorted(kept):
        if total <= limit * GB:
            break
        say(f"data.cache_limit: removing {entry}, unused for longest")
        gone = entry.with_name(f".{entry.name}.{os.getpid()}")
        with suppress(OSError):
            entry.rename(gone)  # atomic; processes that have it mapped keep it
        shutil.rmtree(gone, ignore_errors=True)
        total -= size


def _room(path: Path, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.uint8]]":
    """Map an array from a new file with all its disk space reserved.

    Raises:
        OSError: there is too little space. Writing to a map on a full disk would kill the process.
    """
    needed = int(np.prod(shape))
    free = shutil.disk_usage(path.parent).free
    if needed > FILL * free:
        raise OSError(errno.ENOSPC, f"{bytes_of(needed)} are needed, {bytes_of(free)} are free")
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # a quota may allow less than the disk has
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _valid(entry: Path, mode: Mode) -> Manifest | None:
    """Return the entry's manifest if its files are intact, else None.

    A mapped array is checked whole only if its file was touched, because it may be large. Otherwise
    each image is checked at its first read, see `kd.data.images.PixelStore`.
    """
    if not entry.exists():
        return None
    try:
        manifest: Manifest = json.loads((entry / MANIFEST).read_text())
        stamp = manifest["pixels"]
        if stamp is None and mode != "stream":
            return None
        whole = manifest["facts"] == checksum(entry / FACTS) and (
            mode == "stream"
            or (mode == "disk" and stamp == _stamp(entry))
            or (stamp is not None and _same_pixels(entry, stamp))
        )
    except (OSError, ValueError, KeyError):
        whole = False
    return manifest if whole else None


def damage_of(entry: Path) -> str:
    """Return what is wrong with an entry, all of whose images are read for it; empty if nothing."""
    if not entry.exists():
        return ""
    try:
        manifest: Manifest = json.loads((entry / MANIFEST).read_text())
        if manifest["facts"] != checksum(entry / FACTS):
            return f"the checksum of {FACTS} is wrong"
        stamp = manifest["pixels"]
        if stamp is not None and not _same_pixels(entry, stamp):
            return "images in pixels.npy have changed"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return ""


def _stamp(entry: Path) -> list[int]:
    """Return size and modification time of the array: reading a large one is too slow."""
    found = (entry / "pixels.npy").stat()
    return [found.st_size, found.st_mtime_ns]


def _same_pixels(entry: Path, stamp: list[int]) -> bool:
    """Check that a touched or copied array still holds its images."""
    if _stamp(entry)[0] != stamp[0]:
        return False
    store = PixelStore.from_file(entry / "pixels.npy")
    same = all(store.matches_facts(row) for row in range(len(store.array)))
    if same:
        with suppress(OSError):  # a read-only folder works as well
            # So the next run skips this check
            os.utime(entry / "pixels.npy", ns=(stamp[1], stamp[1]))
    return same


def _decode_all(
    files: EncodedImages,
    shape: tuple[int, int, int, int],
    array: NDArray[np.uint8] | None,
    reading: Reading,
) -> tuple[Facts, dict[int, str], list[str]]:
    """Decode all files, on all cores.

    Args:
        array: filled with the pixels, [N, C, H, W]; None for facts only.

    Returns:
        the facts, the reasons of files that stay blank, and remarks on the others.
    """
    count, channels, *size = shape
    facts = Facts.blank(count, channels)
    bad = dict[int, str]()
    remarks = dict[int, Remarks]()

    def one(position: int) -> None:
        said = Remarks()
        try:
            data = files.read(position)
            facts.sources.numpy()[position] = np.frombuffer(source_digest(data), np.uint8)
            image = decode(data, (size[0], size[1]), channels, reading, said)
        except (DecodeError, OSError) as error:
            bad[position] = getattr(error, "strerror", None) or str(error)
            image = np.zeros(shape[1:], np.uint8)
        if array is not None:
            array[position] = image
        facts.note(position, image)
        facts.sizes.numpy()[position] = said.size
        if said.warnings or said.brightest is not None:
            remarks[position] = said

    if not console.is_terminal:
        say(f"decoding {number_of(count, 'image')} in {files.place}")
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar as progress, remarking():
        for _ in progress.track(in_threads(one, count), count, description="decoding images"):
            pass
    return facts, dict(sorted(bad.items())), _notes(files, dict(sorted(remarks.items())), reading)


def _notes(files: EncodedImages, remarks: Mapping[int, Remarks], reading: Reading) -> list[str]:
    """Summarise the remarks of all files in a few sentences."""
    notes = []
    levels = [each.brightest for each in remarks.values() if each.brightest is not None]
    if levels and (most := max(levels)) < 2 ** (reading.bit_depth - 1):
        full = 2**reading.bit_depth - 1
        notes.append(
            f"the brightest of the {len(levels)} gray images of 16 bits reaches level {most} "
            f"of {full}, so {round(255 * most / full)} of 255; "
            f"data.bit_depth={max(9, most.bit_length())} would show them in full"
        )
    warned = {i: each.warnings[0] for i, each in remarks.items() if each.warnings}
    if warned:
        shown = [f"{files.name(i)}: {text}" for i, text in list(warned.items())[:NAMED]]
        more = f"; and {len(warned) - NAMED} more" if len(warned) > NAMED else ""
        notes.append(f"Pillow warns of {number_of(len(warned), 'image')}: {'; '.join(shown)}{more}")
    return notes
