"""WebDataset tars: images, each with its class in a file of the same name."""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kd.data.decode import endings
from kd.data.file_source import ContainedImages, FileSource, files_by_part, home_of
from kd.data.folder import plain
from kd.data.images import Source
from kd.data.texts import Texts
from kd.errors import UserError
from kd.log import number_of

NAMES_FILE = "classnames.txt"


class WebDataset(FileSource):
    """Tars in the layout of WebDataset: `0001.jpg` and `0001.cls`, or `0001.json` with a `label`.

    Args:
        root: folder of tars, one tar, or a pattern such as `shards/a-*.tar`. `train`, `val` or
            `test` in their names or folders say which part they are; tars without such a word are
            of train. Class names are in `classnames.txt` in that folder, one a line; without it
            they are what the tars say.
        parts: patterns of the tars of train, val and test, from `root`.
        options: those of `kd.data.file_source.FileSource`.
    """

    def __init__(
        self, root: str = "data", parts: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        super().__init__(root, **options)
        self.given = parts

    def read(self) -> Source:
        """List the tars' members, and decode the images."""
        found = {
            part: TarImages(files)
            for part, files in files_by_part(self.root, ".tar", self.given).items()
        }
        folder, _ = home_of(self.root)
        names = (folder.parent if folder.is_file() else folder) / NAMES_FILE
        if names.exists():
            classes = tuple(plain(line) for line in names.read_text().splitlines() if line.strip())
        else:
            seen = {name for each in found.values() for name in each.classes}
            number = all(name.isdigit() for name in seen)
            classes = tuple(sorted(seen, key=(lambda name: int(name)) if number else None))
        for each in found.values():
            each.give_labels(classes, by_number=names.exists())
            for text in each.remarks:
                self.note(text)
        return self.source(found, classes)


class TarImages(ContainedImages):
    """Images in tars, read where they lie.

    Attributes:
        remarks: on members that give no image, for people.

    Raises:
        UserError: a tar is damaged, or an image has no class.
    """

    def __init__(self, tars: Sequence[Path]) -> None:
        self.files = tars
        self.remarks: list[str] = []
        found = [
            (i, *member) for i, tar in enumerate(tars) for member in _members(tar, self.remarks)
        ]
        self._names = Texts(name for _, name, *_ in found)
        self._places = np.array([(i, offset, size) for i, _, offset, size, _ in found])
        self.classes = Texts(label for *_, label in found)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, number: int) -> bytes:
        """Read a member's bytes."""
        tar, offset, size = self._places[number]
        with self.files[int(tar)].open("rb") as file:
            file.seek(int(offset))
            return file.read(int(size))

    def name(self, number: int) -> str:
        """Return the tar and the member."""
        return plain(f"{self.files[self._places[number, 0]].name}/{self._names[number]}")

    def state(self, number: int) -> bytes:
        """Return the state of the tar, and the member's place in it."""
        tar, *place = self._places[number].tolist()
        return self.state_in(tar, [self._names[number], *place])

    def give_labels(self, classes: Sequence[str], *, by_number: bool) -> None:
        """Set the labels.

        Args:
            by_number: whether the tars have numbers of the classes, not names, if they can be read
                so.
        """
        places = {name: i for i, name in enumerate(classes)}
        self.labels = [
            int(name) if by_number and name.isdigit() else places.get(name, -1)
            for name in self.classes
        ]


def _members(tar: Path, remarks: list[str]) -> Iterator[tuple[str, int, int, str]]:
    """Iterate over the images of a tar: name, offset, bytes and class.

    Args:
        remarks: gets a line on labels without an image, and on names that come again.

    Raises:
        UserError: the tar is damaged, or an image has no class.
    """
    images: dict[str, tuple[str, int, int]] = {}
    said: dict[str, str] = {}
    again = 0
    last = "its start"
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                last = member.name
                folder = PurePosixPath(member.name)
                stem, _, kind = folder.name.partition(".")
                key = str(folder.parent / stem)
                if not member.isfile():
                    continue
                if f".{kind.lower()}" in endings():
                    again += key in images
                    images[key] = (member.name, member.offset_data, member.size)
                elif kind in ("cls", "json"):
                    file = archive.extractfile(member)
                    text = (file.read() if file else b"").decode()
                    label = text if kind == "cls" else json.loads(text).get("label")
                    if label is not None:
                        said[key] = plain(str(label).strip())
    except (tarfile.TarError, OSError, EOFError, ValueError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"data.root: {tar} is damaged after {plain(last)}: {reason}; get it again"
        ) from error
    if not images:
        raise UserError(f"data.root: no image in {tar}")
    _check_whole(tar, last)
    if lone := [key for key in said if key not in images]:
        few = ", ".join(map(plain, lone[:3]))
        remarks.append(f"{tar.name} has {number_of(len(lone), 'label')} without an image: {few}")
    if again:
        remarks.append(f"{tar.name} has {number_of(again, 'name')} again; the last image counts")
    for key, image in images.items():
        if key not in said:
            raise UserError(
                f"data.root: {tar} has {plain(image[0])}, but no class in {plain(key)}.cls, "
                f"nor a label in {plain(key)}.json"
            )
        yield (*image, said[key])


def _check_whole(tar: Path, last: str) -> None:
    """Refuse a tar that ends inside a member, which tarfile lists all the same."""
    with tar.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - tarfile.BLOCKSIZE))
        end = file.read()
    if size % tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise UserError(f"data.root: {tar} is cut off in or after {plain(last)}; get it again")
