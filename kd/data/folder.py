"""Folder layout of an image set: parts, class folders, image files."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kd.data.decode import endings
from kd.errors import UserError, nearest
from kd.log import one_line

PARTS = ("train", "val", "test")

# Usual names of parts, with or without words before and after: seg_train, Test-Images2.
NAMES = {
    "train": "train|training|trn",
    "val": "val|valid|validation",
    "test": "test|tests|testing|tst",
}
AFFIXES = (
    "data|sets?|splits?|parts?|folders?|dirs?|images?|imgs?|pictures?|pics?|photos?|samples?|files?"
    "|seg|raw|full|final|original|processed|cropped|resized"
)
PATTERNS = {
    part: re.compile(rf"(?:{AFFIXES})*(?:{names})(?:{AFFIXES})*") for part, names in NAMES.items()
}


@dataclass(frozen=True)
class Layout:
    """How the folders of an image folder are read.

    Attributes:
        parts: folders of train, val and test; each holds class folders. Train alone is the top
            folder if the class folders are there.
        left_out: other top-level folders, by name.
    """

    parts: dict[str, Path]
    left_out: dict[str, Path] = field(default_factory=dict)


def plain(name: str) -> str:
    """Normalise a file name to composed Unicode and escape what is not text."""
    text = unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))
    return one_line(text)


def part_of_name(folder: str) -> str | None:
    """Return the part that a folder name usually means; None for other names."""
    letters = re.sub(r"[\W\d_]+", "", plain(folder).lower())
    return next((part for part, pattern in PATTERNS.items() if pattern.fullmatch(letters)), None)


def layout(root: Path) -> Layout:
    """Find the parts by the names of the folders.

    Raises:
        UserError: two folders could be the same part, or folders look like parts under other names;
            says how to name them.
    """
    tops = subfolders(root := _unwrap(root))
    inner = {name: set(subfolders(path)) for name, path in tops.items()}
    named: dict[str, list[str]] = {}
    for name in tops:
        if part := part_of_name(name):
            named.setdefault(part, []).append(name)
    with_classes = {part: [n for n in names if inner[n]] for part, names in named.items()}
    if not any(with_classes.values()):
        if len(tops) > 1 and sum(map(len, named.values())) == len(tops):
            raise UserError(
                f"data.root: {root.absolute()} holds {_some(tops)}, which have no class "
                "folders in them; needed is a folder for each class, as in train/cat and "
                "train/dog"
            )
        if len(tops) > 1 and len(common := set.intersection(*inner.values())) > 1:
            raise UserError(_unclear(root, tops, common))
        return Layout({"train": root})
    for part, names in with_classes.items():
        if len(names) > 1:
            raise UserError(
                f"data.root: {root.absolute()} holds {_some(names)}, each of which may be "
                f"{part}; say which is, with "
                f"{_hint({part: names[0] for part, names in with_classes.items() if names})}"
                ". What is not named is left out"
            )
    parts = {part: names[0] for part, names in with_classes.items() if names}
    others = {name: path for name, path in tops.items() if name not in parts.values()}
    classes = set(subfolders(inmost(tops[next(iter(parts.values()))])))
    alike = [name for name in others if len(inner[name] & classes) > 1]
    if alike:
        raise UserError(
            f"data.root: {root.absolute()} holds {_some(alike)} with class folders beside "
            f"{_some(parts.values())}; say which folders are the parts, with {_hint(parts)} "
            "or as it should be; what is not named is left out. Where all of them are "
            "classes: 'data.parts={train: .}'"
        )
    return Layout({part: inmost(tops[name]) for part, name in parts.items()}, others)


def given_layout(root: Path, given: Mapping[str, str]) -> Layout:
    """Return the parts that `data.parts` names.

    Args:
        given: folders by part, as paths from `root`.

    Raises:
        UserError: unknown part, no train, a missing folder, or a folder inside another part's.
    """
    if "train" not in given or not set(given) <= set(PARTS):
        raise UserError(
            f"data.parts: found {', '.join(given) or 'nothing'}; needed is train, accepted "
            "are also val and test"
        )
    tops = subfolders(root)
    parts = {part: root / Path(name).expanduser() for part, name in given.items()}
    for part, path in parts.items():
        if not path.is_dir():
            raise UserError(
                f"data.parts.{part}: no folder {path.absolute()}{nearest(given[part], tops)}"
            )
    real = {part: path.resolve() for part, path in parts.items()}
    for part, path in real.items():
        for other in real:
            if other != part and path.is_relative_to(real[other]):
                raise UserError(
                    f"data.parts: {part} ({given[part]}) is or lies in {other} "
                    f"({given[other]}); needed are folders apart from each other"
                )
    left_out = {
        name: path
        for name, path in tops.items()
        if not any(
            each.is_relative_to(path.resolve()) or path.resolve().is_relative_to(each)
            for each in real.values()
        )
    }
    return Layout({part: inmost(path) for part, path in parts.items()}, left_out)


def _unwrap(root: Path) -> Path:
    """Descend to the folder of parts or classes, as in archive/dataset/train."""
    while len(found := subfolders(root)) == 1:
        ((name, only),) = found.items()
        if part_of_name(name) or not subfolders(only):
            break
        root = only
    return root


def inmost(folder: Path) -> Path:
    """Descend to the class folders, as in training_set/training_set/cats."""
    while len(found := list(subfolders(folder).values())) == 1 and subfolders(found[0]):
        folder = found[0]
    return folder


def _unclear(root: Path, tops: Mapping[str, Path], common: set[str]) -> str:
    where = f"data.root: {root.absolute()} holds the folders {_some(tops)}, and each of them holds"
    inside = {part: name for name in sorted(common) if (part := part_of_name(name))}
    if len(inside) > 1:
        return (
            f"{where} {_some(inside.values())}; needed are the parts at the top and the "
            f"classes in them, as in {inside.get('train', 'train')}/{next(iter(tops))}"
        )
    first, second, *_ = tops
    return (
        f"{where} {_some(sorted(common))}. Where the upper ones are the parts, say which, as "
        f"with {_hint({'train': first, 'test': second})}; where they are the classes, "
        "'data.parts={train: .}'"
    )


def _hint(parts: Mapping[str, str]) -> str:
    return f"'data.parts={{{', '.join(f'{part}: {name}' for part, name in parts.items())}}}'"


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def subfolders(folder: Path) -> dict[str, Path]:
    """Return the visible subfolders by name, sorted.

    Raises:
        UserError: two names differ only in their Unicode encoding.
    """
    found: dict[str, Path] = {}
    for path in folder.iterdir():
        if path.is_dir() and not _is_hidden(path.name):
            if (name := plain(path.name)) in found:
                raise UserError(
                    f"data.root: {folder.absolute()} holds two folders that read {name}, of "
                    "other bytes; join them"
                )
            found[name] = path
    return dict(sorted(found.items()))


def find_images(folder: Path, passed: Counter[str] | None = None) -> list[Path]:
    """Find all files below a folder with an image suffix, at any depth, sorted by name.

    Case of the suffix does not matter, symbolic links are followed, hidden files are left out.

    Args:
        passed: collects the number of other files by suffix.
    """
    return [folder / name for name in image_names(folder, passed)]


def image_names(folder: Path, passed: Counter[str] | None = None) -> list[str]:
    """Find the same files, as paths from the folder: a str takes a fifth of a Path's memory."""
    return sorted(_images(_walk(folder, "", frozenset()), passed), key=plain)


def count_top_images(folder: Path, passed: Counter[str]) -> int:
    """Count the image files of a folder itself, without its subfolders; others go into `passed`."""
    names = (each.name for each in folder.iterdir() if each.is_file() and not _is_hidden(each.name))
    return len(list(_images(names, passed)))


def _images(names: Iterable[str], passed: Counter[str] | None) -> Iterator[str]:
    """Iterate over the names of images; those of other files are counted by kind in `passed`."""
    for name in names:
        suffix = os.path.splitext(name)[1].lower()
        if suffix in endings():
            yield name
        elif passed is not None:
            passed[kind_of(suffix)] += 1


def kind_of(suffix: str) -> str:
    """Return how files of a suffix are called where they are counted."""
    return plain(suffix.rstrip(".").lower()) or "without a suffix"


def omission_note(passed: Counter[str]) -> str:
    """Describe the files that `find_images` left out."""
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed.most_common(10))
    files = "1 file was" if passed.total() == 1 else f"{passed.total()} files were"
    return f"{files} passed over, of no kind that this Pillow decodes: {kinds}"


def _walk(folder: Path, inner: str, above: frozenset[str]) -> Iterator[str]:
    """Iterate over the visible files below a folder, as paths from it.

    Args:
        inner: where in the folder to begin; empty, or with a slash at its end.
        above: real paths of the folders that lead there.
    """
    real = os.path.realpath(folder / inner)
    if real in above:
        return  # a link to one of its parent folders
    with os.scandir(folder / inner) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(folder, f"{inner}{entry.name}/", above | {real})
            else:
                yield f"{inner}{entry.name}"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
