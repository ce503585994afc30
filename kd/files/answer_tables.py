"""Tables of a teacher's answers, such as those of an API: one row an image, from a file."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError, nearest

# Columns that say which image a row is of; `path` is that of kd.predict
KEYS = ("image", "path", "index")
TABLES = (".parquet", ".csv", ".npz")
SMALLEST = 1e-8  # probability whose logarithm is still taken
TableColumns = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class AnswerTable:
    """Answers of a teacher.

    Attributes:
        images: name of each image, or its number in the training files; `test/` is before the
            number of a test image.
        logits: float32 [images, classes]; logarithms where the file gives probabilities.
    """

    images: list[str]
    logits: NDArray[np.float32]


def read_answers(
    file: Path,
    classes: Sequence[str],
    where: str,
    outputs: tuple[Sequence[int], int] | None = None,
) -> AnswerTable:
    """Read a table of answers for the data's classes.

    A column `image` or `index` says of which image a row is, and `part` (train, test) of which part
    the number. The answers may be one column a class, with logits or probabilities. They may be an
    array `logits` or `probabilities` [images, classes]. Or they are the largest probabilities, in
    `class_1`, `probability_1`, `class_2`, ...; the other classes share the rest equally.

    Args:
        classes: of the data, by name.
        where: config key of the file, for messages.
        outputs: of an array's columns those of the data's classes, and how many it has; None for
            the data's classes in order.

    Raises:
        UserError: the file cannot be read, or a column or a class is missing.
    """
    columns = read_columns(file, where)
    key = next((name for name in KEYS if name in columns), None)
    if key is None:
        raise UserError(
            f"{where}: {file} has the columns {', '.join(list(columns)[:10])}; needed is "
            f"{' or '.join(KEYS)}, which says of which image a row is"
        )
    images = [str(name) for name in columns[key].tolist()]
    if not images:
        raise UserError(f"{where}: {file} has no rows; needed is one for each training image")
    odd = [name for name, column in columns.items() if len(column) != len(images)]
    if odd:
        raise UserError(
            f"{where}: {file} has {len(images)} values of {key}, and {len(columns[odd[0]])} of "
            f"{odd[0]}; needed are equally many"
        )
    if key == "index" and "part" in columns:
        parts = columns["part"].tolist()
        images = [
            f"test/{n}" if part == "test" else n for n, part in zip(images, parts, strict=True)
        ]
    if len(set(images)) < len(images):
        twice = next(name for name in images if images.count(name) > 1)
        raise UserError(f"{where}: {file} has several rows of {key} {twice}; accepted is one")
    if "class_1" in columns:
        found = _of_top(columns, classes, f"{where}: {file}", images)
    else:
        found = _whole(columns, classes, f"{where}: {file}", outputs)
    if not np.isfinite(found).all():
        bad = images[int((~np.isfinite(found)).any(1).argmax())]
        raise UserError(f"{where}: {file} has no finite answer for {key} {bad}")
    shares = (found >= 0).all(1) & (np.abs(found.sum(1) - 1) < 1e-3)
    if shares.all():
        found = np.log(found.clip(min=SMALLEST))
    elif shares.mean() > 0.5:
        raise UserError(
            f"{where}: {file} has probabilities, but not for {key} {images[int(shares.argmin())]}: "
            f"needed are numbers from 0 whose sum is 1, or logits for all images"
        )
    return AnswerTable(images, found.astype(np.float32))


def read_columns(file: Path, where: str) -> TableColumns:
    """Read the columns of a .csv, .parquet or .npz file by name; those of a .csv as text.

    Raises:
        UserError: it cannot be read, or is of another kind.
    """
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        if file.suffix == ".csv":
            with file.open(newline="", encoding="utf-8-sig") as lines:
                rows = list(csv.reader(lines))
            return {name: np.array(list(c)) for name, *c in zip(*rows, strict=True)}
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(file)
            return {n: table[n].to_numpy(zero_copy_only=False) for n in table.column_names}
    except ImportError as error:
        raise UserError(f"{where}: {file.name} needs pyarrow: pip install 'kd[parquet]'") from error
    except Exception as error:  # readers raise undocumented errors on damaged files
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{where}: {file} cannot be read as {file.suffix}: {reason}") from error
    raise UserError(f"{where}: found {file.name}; accepted are {', '.join(TABLES)}")


def _whole(
    columns: TableColumns,
    classes: Sequence[str],
    where: str,
    outputs: tuple[Sequence[int], int] | None,
) -> NDArray[np.float64]:
    """Return the answers for all classes, [images, classes], as the file gives them."""
    arrays = [each for each in ("logits", "probabilities") if each in columns]
    if len(arrays) > 1:
        raise UserError(f"{where}: it has {' and '.join(arrays)}; accepted is one of them")
    name = next(iter(arrays), None)
    if name is None:
        _all_there([each for each in classes if each not in columns], classes, columns, where)
        return np.stack([_numbers(columns[each], each, where) for each in classes], 1)
    array = columns[name]
    if array.dtype == object:  # lists in a column
        array = np.stack(array.tolist())
    taken, count = outputs or (range(len(classes)), len(classes))
    if array.ndim != 2 or array.shape[1] != count:
        raise UserError(
            f"{where}: its {name} are {list(array.shape)}, needed are [images, {count}] for "
            f"{count} classes; teacher.classes names the file's, in order"
        )
    return np.asarray(array[:, list(taken)], np.float64)


def _of_top(
    columns: TableColumns, classes: Sequence[str], where: str, images: Sequence[str]
) -> NDArray[np.float64]:
    """Return probabilities [images, classes] from the largest ones."""
    positions = {name: i for i, name in enumerate(classes)}
    count = len(columns["class_1"])
    given = np.full((count, len(classes)), np.nan)
    rank = 1
    while f"class_{rank}" in columns:
        names = list(map(str, columns[f"class_{rank}"].tolist()))
        # A table of as many answers as there were may end a row early
        rows = np.array([i for i, name in enumerate(names) if name or rank == 1], int)
        names = [names[i] for i in rows]
        _all_there([n for n in dict.fromkeys(names) if n not in positions], names, classes, where)
        column = f"probability_{rank}"
        if column not in columns:
            raise UserError(f"{where}: it has class_{rank}, but no {column}")
        at = [positions[name] for name in names]
        if (twice := ~np.isnan(given[rows, at])).any():
            row = int(twice.argmax())
            raise UserError(
                f"{where}: it has {names[row]} twice for {images[rows[row]]}; accepted is once"
            )
        given[rows, at] = _numbers(columns[column][rows], column, where)
        rank += 1
    rest = 1 - np.nansum(given, 1)
    if (rest < -1e-3).any() or (given < 0).any():
        raise UserError(
            f"{where}: the probabilities of {images[_worst(given, rest)]} are no shares of 1"
        )
    others = np.isnan(given).sum(1)
    share = rest.clip(min=0) / others.clip(min=1)
    whole = np.where(np.isnan(given), share[:, None], given)
    return np.asarray(whole / whole.sum(1, keepdims=True))


def _worst(given: NDArray[np.float64], rest: NDArray[np.float64]) -> int:
    """Return the row that is furthest from shares of 1."""
    return int(np.minimum(rest, np.nanmin(given, 1)).argmin())


def _all_there(
    missing: Sequence[str], wanted: Sequence[str], found: Iterable[str], where: str
) -> None:
    if missing:
        raise UserError(
            f"{where}: of {len(set(wanted))} classes {len(missing)} are missing: "
            f"{', '.join(missing[:5])}{nearest(missing[0], list(found))}; found are "
            f"{', '.join(list(found)[:10])}"
        )


def _numbers(column: NDArray[np.generic], name: str, where: str) -> NDArray[np.float64]:
    try:
        return np.asarray(column, np.float64)
    except ValueError as error:
        raise UserError(f"{where}: its column {name} holds no numbers ({error})") from error
