"""What lies in a folder of images: class folders, and the image files under them."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from kd.data.decode import ENDINGS
from kd.log import one_line

# What people call the parts of a data set.
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def plain(name: str) -> str:
    """A file name in composed Unicode, as some systems store it decomposed; what is no text in it is escaped."""
    text = unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))
    return one_line(text)


def part_folders(root: Path) -> dict[str, Path]:
    """The folders of train, val and test under `root`, by those names; empty where there are none."""
    return {
        PARTS[name.lower()]: path
        for name, path in subfolders(root).items()
        if name.lower() in PARTS
    }


def subfolders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by their name, in order of name; hidden ones left out."""
    found = {
        plain(path.name): path
        for path in folder.iterdir()
        if path.is_dir() and not _hidden(path.name)
    }
    return dict(sorted(found.items()))


def find_images(folder: Path) -> list[Path]:
    """All files under a folder that an image ending says are images, at any depth, in order of name.

    Upper and lower case endings count, symbolic links are followed, other files and hidden ones are left out.
    """
    return sorted(
        _walk(folder, frozenset()), key=lambda path: plain(path.relative_to(folder).as_posix())
    )


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        return  # a link to a folder that it is in
    for path in folder.iterdir():
        if _hidden(path.name):
            continue
        if path.is_dir():
            yield from _walk(path, above | {real})
        elif path.suffix.lower() in ENDINGS:
            yield path


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
