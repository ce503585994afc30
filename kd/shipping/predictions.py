"""Predictions for image files, one row each, as CSV or JSON."""

import contextlib
import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from kd.data.decode import DecodeError, Remarks, decode, remarking
from kd.files.writing import whole
from kd.log import number_of, one_line, say, waiting
from kd.reports.escape import in_a_cell
from kd.shape import height_and_width
from kd.shipping.model import Model, load_model

FIXED = ("path", "class", "error")  # columns besides the classes


@dataclass(frozen=True)
class Prediction:
    """Prediction for one file: class probabilities, or why it could not be read.

    Attributes:
        multilabel: whether it may have several labels, or none.
    """

    path: str
    probabilities: list[float] | None
    error: str | None
    multilabel: bool = False


def predict(
    model: str, files: Sequence[Path], out: str | None, *, device: str, trust: Sequence[str] = ()
) -> int:
    """Predict the classes of files, and write them.

    Args:
        model: see `kd.load`.
        out: a `.csv` or `.json` file, written atomically; None for CSV on stdout.
        device: `auto` uses a GPU if there is one that the model can use.

    Returns:
        the number of unreadable files.

    Raises:
        UserError: there is no such model.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not model.endswith(".onnx") else "cpu"
    asked = load_model(model, "model", device=device, trust=trust)
    failed = 0
    with _writer(out, asked.classes) as write:
        for row in rows(asked, files):
            failed += row.error is not None
            write(row)
    if out:
        say(f"{len(files) - failed} of {len(files)} images predicted: {out}")
    return failed


@torch.no_grad()
def rows(model: Model, files: Sequence[Path]) -> Iterator[Prediction]:
    """Iterate over the rows, in order, with one batch of images in memory."""
    size = max(1, min(64, 2**20 // math.prod(height_and_width(model.image_size))))
    steps = range(0, len(files), size)
    # Threads: Pillow releases the GIL while it decodes.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool, remarking():
        for i in waiting(steps, f"predicting {number_of(len(files), 'image')}"):
            batch = files[i : i + size]
            decoded = list(pool.map(lambda file: _decode(file, model), batch))
            pixels = [each for each in decoded if not isinstance(each, str)]
            said = iter(
                model.probabilities(torch.from_numpy(np.stack(pixels))).tolist() if pixels else ()
            )
            for file, each in zip(batch, decoded, strict=True):
                error = each if isinstance(each, str) else None
                found = None if error is not None else next(said)
                yield Prediction(_path_text(file), found, error, model.multilabel)


def _decode(file: Path, model: Model) -> NDArray[np.uint8] | str:
    """Return the pixels [C, H, W], or the reason why there are none."""
    remarks = Remarks()
    try:
        pixels = decode(file, model.image_size, model.channels, model.reading, remarks)
        for text in remarks.warnings:
            say(f"{_path_text(file)}: Pillow warns: {text}")
        return pixels
    except DecodeError as error:
        return str(error)


def _path_text(path: Path) -> str:
    """Format a path, with non-text escaped."""
    return one_line(os.fsencode(path).decode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def _writer(out: str | None, classes: Sequence[str]) -> Iterator[Callable[[Prediction], None]]:
    """Yield a function that writes a row, to an atomically written file or to stdout."""
    if out is None:
        with _csv(sys.stdout, classes) as write:
            yield write
        return
    path = Path(out).expanduser()
    kind = _json if path.suffix == ".json" else _csv
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        with kind(file, classes) as write:
            yield write
        file.flush()  # before the rename


@contextlib.contextmanager
def _csv(file: TextIO, classes: Sequence[str]) -> Iterator[Callable[[Prediction], None]]:
    """Write the columns `path`, `class`, one per class name, and `error`."""
    table = csv.writer(file, lineterminator="\n")
    columns = (in_a_cell(f"p({name})" if name in FIXED else name) for name in classes)
    table.writerow(["path", "class", *columns, "error"])

    def write(row: Prediction) -> None:
        if row.probabilities is None:
            cells: list[object] = [row.path, "", *("" for _ in classes), row.error]
        else:
            cells = [row.path, _choice(row, classes), *map(_number, row.probabilities), ""]
        table.writerow(map(in_a_cell, cells))

    yield write


@contextlib.contextmanager
def _json(file: TextIO, classes: Sequence[str]) -> Iterator[Callable[[Prediction], None]]:
    """Write a list of objects with `path`, `class`, `probabilities` by class, and `error`.

    Missing values are null.
    """
    before = "[\n"

    def write(row: Prediction) -> None:
        nonlocal before
        found: dict[str, object] = {
            "path": row.path,
            "class": None,
            "probabilities": None,
            "error": row.error,
        }
        if row.probabilities is not None:
            found["class"] = _choice(row, classes)
            found["probabilities"] = dict(
                zip(classes, map(_number, row.probabilities), strict=True)
            )
        file.write(before + json.dumps(found, ensure_ascii=False))
        before = ",\n"

    yield write
    file.write("\n]\n")


def _choice(row: Prediction, classes: Sequence[str]) -> str:
    """Return the most probable class; of several labels those above 1/2, divided by `|`."""
    assert row.probabilities is not None
    if row.multilabel:
        pairs = zip(classes, row.probabilities, strict=True)
        return "|".join(name for name, probability in pairs if probability > 0.5)
    return classes[max(range(len(classes)), key=row.probabilities.__getitem__)]


def _number(probability: float) -> float:
    """Round to the digits of float32."""
    return float(f"{probability:.6g}")
