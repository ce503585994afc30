"""Label files: a table beside a folder of images, one row an image."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from kd.data.folder import PARTS, part_of_name, plain
from kd.errors import UserError, nearest
from kd.files.answer_tables import TableColumns, read_columns

WHERE = "data.label_file"
# Usual names of columns, in lower case and letters alone
IMAGE = (
    "image|img|file|path|name|id|imageid|imagename|imagefile|imagepath|imageindex|filename|filepath"
    "|idcode"
)
LABEL = "label|labels|class|classes|classname|category|target|diagnosis|findinglabels|tags"
PART = "part|split|set|subset"


class LabelRow(NamedTuple):
    """One image of the file.

    Attributes:
        name: as the file gives it.
        labels: classes, by their places in the list of classes; one but for multi-label data.
        part: train, val or test; None if the file does not say.
    """

    name: str
    labels: tuple[int, ...]
    part: str | None


def read_label_file(
    file: Path,
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    multilabel: bool = False,
) -> tuple[list[LabelRow], tuple[str, ...]]:
    """Read the rows and the class names, which are sorted.

    A column says which image a row is of, and one of its label; or a column for each class holds 1
    for the image's class and 0 for others. A column `part` may say train, val or test. Of
    multi-label data the label is a list such as `cat|dog`, and may be empty.

    Args:
        image_column, label_column: names of those columns; a list names those of the classes. None
            finds them by the usual names; without one for the label all others are classes.
        multilabel: whether an image may have several labels, or none.

    Raises:
        UserError: the file cannot be read, a column is missing, an image has no label or several,
            or a value is not understood.
    """
    columns = read_columns(file, WHERE)
    if not columns or not len(next(iter(columns.values()))):
        raise UserError(f"{WHERE}: {file} has no rows")
    image = _column(columns, "image_column", image_column, IMAGE, file)
    part = _usual(columns, PART)
    names = [str(each).strip() for each in columns[image].tolist()]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{WHERE}: {file} has several rows of {twice}; accepted is one")
    single = label_column if isinstance(label_column, str) else None
    if label_column is None:
        single = _usual(columns, LABEL)
    if single is not None:
        said = _cells(columns, _column(columns, "label_column", single, LABEL, file), multilabel)
        listed = sorted({each for labels in said for each in labels}, key=_order)
    else:
        listed = list(label_column or [each for each in columns if each not in (image, part)])
        said = _classes_of_columns(columns, listed, names, file)
    if not multilabel:
        _check_one(said, names, file)
    classes = tuple(map(plain, listed))
    if len(classes) < 2:
        raise UserError(f"{WHERE}: {file} has {len(classes)} class, needed are two or more")
    places = {name: i for i, name in enumerate(listed)}
    parts = _parts(columns, part, names, file)
    labels = [tuple(sorted(places[each] for each in set(mine))) for mine in said]
    return [LabelRow(*row) for row in zip(names, labels, parts, strict=True)], classes


def find_files(rows: Sequence[LabelRow], paths: Sequence[str]) -> list[int]:
    """Find the file of each row: its place among the paths.

    A row names a path, or an end of it such as the file name, with or without the suffix. What the
    row says before that is passed over.

    Args:
        paths: of the image files, relative to the data's folder.

    Raises:
        UserError: some rows have no file or could be of several; says how many of each.
    """
    ends: dict[str, int] = {}
    for i, path in enumerate(paths):
        for end in {*_ends(path), *_ends(str(PurePosixPath(path).with_suffix("")))}:
            ends[end] = -1 if end in ends else i
    found = [_first(ends, row.name) for row in rows]
    problems = {
        "no image file": [row.name for row, i in zip(rows, found, strict=True) if i is None],
        "several image files": [row.name for row, i in zip(rows, found, strict=True) if i == -1],
    }
    texts = [
        f"{len(names)} of {len(rows)} rows have {what} ({', '.join(names[:3])})"
        for what, names in problems.items()
        if names
    ]
    if texts:
        raise UserError(
            f"{WHERE}: {'; '.join(texts)}. Needed is a path from data.root, or a file name that is "
            f"there once; the images there are such as {', '.join(paths[:2]) or 'none'}"
        )
    return [i for i in found if i is not None]


def _first(ends: Mapping[str, int], name: str) -> int | None:
    """Return the file of the longest end of a name; -1 for several, None for none."""
    return next((ends[end] for end in _ends(plain(name.replace("\\", "/"))) if end in ends), None)


def _ends(path: str) -> list[str]:
    """Return a path and its ends, the longest first: `a/b/c`, `b/c`, `c`."""
    parts = [each for each in path.split("/") if each not in ("", ".")]
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _usual(columns: TableColumns, names: str) -> str | None:
    """Return the first column with a usual name."""
    known = names.split("|")
    return next((each for each in columns if re.sub(r"[\W_]+", "", each.lower()) in known), None)


def _column(columns: TableColumns, key: str, asked: str | None, usual: str, file: Path) -> str:
    """Return the name of a column.

    Raises:
        UserError: there is none.
    """
    found = _usual(columns, usual) if asked is None else asked
    if found is None or found not in columns:
        raise UserError(
            f"data.{key}: found {asked or 'null'}, but {file.name} has the columns "
            f"{', '.join(list(columns)[:10])}{nearest(asked or usual, list(columns))}"
        )
    return found


def _cells(columns: TableColumns, column: str, several: bool) -> list[list[str]]:
    """Return the labels of each row as the file writes them: several divided by `|`, `;` or `,`."""
    cells = [str(each) for each in columns[column].tolist()]
    found = [re.split(r"[|;,]", cell) if several else [cell] for cell in cells]
    return [[label.strip() for label in each if label.strip()] for each in found]


def _classes_of_columns(
    columns: TableColumns, classes: Sequence[str], names: Sequence[str], file: Path
) -> list[list[str]]:
    """Return the classes of each row, whose columns hold 1."""
    marks = np.stack([_marks(columns, each, names, file) for each in classes], 1)
    return [[classes[i] for i in row.nonzero()[0]] for row in marks]


def _check_one(said: Sequence[Sequence[str]], names: Sequence[str], file: Path) -> None:
    """Refuse rows with no label or several."""
    wrong = [i for i, labels in enumerate(said) if len(labels) != 1]
    if wrong:
        first = wrong[0]
        raise UserError(
            f"{WHERE}: {len(wrong)} of {len(names)} rows of {file} do not have one label: "
            f"{names[first]} has {', '.join(said[first]) or 'none'}. Accepted are one label each, "
            "or several with data.task=multilabel. Images without a row are left out, or may come "
            "from data.unlabeled=FOLDER"
        )


def _marks(
    columns: TableColumns, column: str, names: Sequence[str], file: Path
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which rows are of a class by its column, bool [rows]; an empty cell is a 0."""
    name = _column(columns, "label_column", column, LABEL, file)
    marks = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    marks[""] = marks["nan"] = marks["none"] = False
    cells = [str(each).strip().lower() for each in columns[name].tolist()]
    for cell, image in zip(cells, names, strict=True):
        if cell not in marks:
            raise UserError(
                f"data.label_column: the column {name} of {file.name} holds {cell} for {image}; "
                "accepted in the column of a class are 0 and 1. Name those of the classes: "
                "'data.label_column=[cat, dog]', or the one with the label"
            )
    return np.array([marks[cell] for cell in cells])


def _parts(
    columns: TableColumns, column: str | None, names: Sequence[str], file: Path
) -> list[str | None]:
    """Return the part of each row, if a column says it."""
    if column is None:
        return [None] * len(names)
    said = [str(each) for each in columns[column].tolist()]
    found = {each: part_of_name(each) for each in set(said)}
    if unknown := [each for each, part in found.items() if part is None]:
        raise UserError(
            f"{WHERE}: the column {column} of {file.name} holds {unknown[0]!r}; accepted are "
            f"{', '.join(PARTS)}"
        )
    return [found[each] for each in said]


def _order(name: str) -> tuple[bool, int, str]:
    """Return what class names are sorted by: numbers first, by size."""
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)
