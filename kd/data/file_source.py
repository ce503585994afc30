"""Sources of encoded images: the options of decoding, and how parts become a `Source`."""

import bisect
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import torch

from kd.config.fields import Interpolation, Resize
from kd.data.base import DataModule, Images, Source, one_of
from kd.data.decode import checked_reading
from kd.data.folder import NAMES, PARTS, plain
from kd.data.image_bytes import EncodedImages, state_of
from kd.data.texts import Texts
from kd.errors import UserError
from kd.shape import image_size as square_or_sides

LARGEST = 8192  # image side in pixels; some 200 MB per image


class FileSource(DataModule):
    """Data set whose images are decoded.

    Args:
        image_size: side of the images after `resize` in pixels, or [height, width].
        channels: 3 for RGB, 1 for gray.
        bit_depth, resize, crop_ratio, interpolation, draft: see `kd.data.decode.Reading`.
        options: those of every source, see `kd.data.base.DataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        image_size: int | list[int] | tuple[int, int] = 64,
        channels: int = 3,
        bit_depth: int = 16,
        resize: Resize = "stretch",
        crop_ratio: float = 1,
        interpolation: Interpolation = "bilinear",
        draft: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        sides = [image_size] if isinstance(image_size, int) else list(image_size)
        if len(sides) > 2 or not sides or not all(1 <= side <= LARGEST for side in sides):
            raise UserError(
                f"data.image_size: found {image_size}, accepted is a number of pixels from 1 "
                f"to {LARGEST}, or [height, width]"
            )
        if channels not in (1, 3):
            raise UserError(f"data.channels: found {channels!r}, accepted are 1 (gray) and 3 (RGB)")
        if not 9 <= bit_depth <= 16:
            raise UserError(f"data.bit_depth: found {bit_depth}, accepted are 9 to 16")
        self.reading = checked_reading(
            "data",
            bit_depth=bit_depth,
            resize=one_of("resize", resize, get_args(Resize)),
            crop_ratio=float(crop_ratio),
            interpolation=one_of("interpolation", interpolation, get_args(Interpolation)),
            draft=one_of("draft", draft, (False, True)),
        )
        self.image_size = square_or_sides(sides[0], sides[-1])
        self.channels = channels

    def source(self, parts: Mapping[str, "LabelledImages"], classes: tuple[str, ...]) -> Source:
        """Decode parts, of which `train` is one.

        Raises:
            UserError: a label is out of range, or images cannot be decoded.
        """
        for name, part in parts.items():
            wrong = [i for i, label in enumerate(part.labels) if not 0 <= label < len(classes)]
            if wrong:
                raise UserError(
                    f"data.root: {part.name(wrong[0])} of {name} has label "
                    f"{part.labels[wrong[0]]}, accepted are 0 to {len(classes) - 1}"
                )
        if len(classes) < 2:
            raise UserError(f"data.root: found {len(classes)} class, needed are two or more")
        whole = JoinedImages(list(parts.values()))
        pixels, good = self.decode(whole, self.image_size, self.channels, "data.root")
        labels = torch.cat([torch.tensor(part.labels) for part in parts.values()])[good]
        sizes = torch.tensor([len(part) for part in parts.values()])
        of_part = torch.arange(len(sizes)).repeat_interleave(sizes)[good]
        every = Images(pixels, labels, None, Texts(whole.name(i) for i in good.tolist()))
        found = {
            name: every.at((of_part == number).nonzero()[:, 0]) for number, name in enumerate(parts)
        }
        return Source(found["train"], found.get("test"), classes, found.get("val"))


class LabelledImages(EncodedImages):
    """Encoded images with labels; a source of its own implements `__len__` and `read` too.

    Attributes:
        labels: of each image, from 0.
    """

    labels: Sequence[int]


class ContainedImages(LabelledImages):
    """Labelled images inside larger files, such as tars.

    Attributes:
        files: the larger ones.
    """

    files: Sequence[Path]

    @cached_property
    def _states(self) -> list[bytes]:
        return [state_of(file) for file in self.files]

    def state_in(self, file: int, where: object) -> bytes:
        """Return the state of a file, by its number, and a place in it."""
        return self._states[file] + repr(where).encode()

    @property
    def place(self) -> str:
        """The first file's folder."""
        return plain(str(self.files[0].parent.absolute()))


class JoinedImages(EncodedImages):
    """Several lists of images as one."""

    def __init__(self, parts: Sequence[EncodedImages]) -> None:
        self.parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def find(self, number: int) -> tuple[int, int]:
        """Return the number of an image's part, and its own number there."""
        which = bisect.bisect_right(self._ends, number)
        return which, number - (self._ends[which - 1] if which else 0)

    def read(self, number: int) -> bytes:
        """Read an image of a part."""
        part, own = self.find(number)
        return self.parts[part].read(own)

    def name(self, number: int) -> str:
        """Return the name within its part."""
        part, own = self.find(number)
        return self.parts[part].name(own)

    def state(self, number: int) -> bytes:
        """Return the state within its part."""
        part, own = self.find(number)
        return self.parts[part].state(own)

    @property
    def place(self) -> str:
        """Where the parts lie."""
        return ", ".join(dict.fromkeys(part.place for part in self.parts))


def files_by_part(
    root: Path, suffix: str, given: Mapping[str, str] | None = None
) -> dict[str, list[Path]]:
    """Find the files of train, val and test by the words in their names and folders.

    Args:
        root: a folder, a file, or a pattern such as `shards/b-*.tar` with `*`, `?` or `[...]`.
        given: patterns such as `shards/train-*.tar` by part, from `root`; None goes by names.

    Raises:
        UserError: there are none, or none of train.
    """
    folder, pattern = home_of(root)
    if not folder.exists():
        raise UserError(f"data.root: no file or folder {folder.absolute()}")
    if given is not None:
        if "train" not in given or not set(given) <= set(PARTS):
            raise UserError(
                f"data.parts: found {', '.join(given) or 'nothing'}; needed is train, accepted "
                "are also val and test"
            )
        found = {part: sorted(folder.glob(name)) for part, name in given.items()}
        for part, files in found.items():
            if not files:
                raise UserError(f"data.parts.{part}: no file {given[part]} in {folder.absolute()}")
        return found
    files = [root] if root.is_file() else sorted(folder.glob(pattern or f"**/*{suffix}"))
    if not files:
        what = f"file {pattern}" if pattern else f"{suffix} file"
        raise UserError(f"data.root: no {what} in {folder.absolute()}")
    by_part: dict[str, list[Path]] = {}
    for file in files:
        where = "" if root.is_file() else str(file.relative_to(folder)).lower()
        words = re.split(r"[^a-z]+", where)
        parts = [part for part, names in NAMES.items() if set(names.split("|")) & set(words)]
        by_part.setdefault(parts[0] if parts else "train", []).append(file)
    if "train" not in by_part:
        raise UserError(
            f"data.root: {folder.absolute()} has {', '.join(by_part)}, but no file of train, such "
            f"as {plain(files[0].name)}; say which are, with 'data.parts={{train: PATTERN}}'"
        )
    return by_part


def home_of(root: Path) -> tuple[Path, str]:
    """Split a pattern into the folder above it and the rest; of a file or folder that is empty."""
    if root.exists():
        return root, ""
    parts = root.parts
    magic = [i for i, part in enumerate(parts) if set(part) & set("*?[")]
    if not magic:
        return root, ""
    return Path(*parts[: magic[0]]), str(Path(*parts[magic[0] :]))
