"""Log of a sweep job: a file that replaces stderr."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console

from kd.files.writing import writing
from kd.log import console


@contextmanager
def into(path: Path) -> Iterator[Console]:
    """Replace stderr by a file; what a full disk cannot hold is lost."""
    with writing(path, "the log"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    console.file = cast("TextIO", _Log(file))
    try:
        yield console
    finally:
        console.file = None  # type: ignore[assignment]  # rich: stderr again
        with suppress(OSError):
            file.close()


class _Log(io.TextIOBase):
    """Text file that never fails."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, text: str) -> int:
        with suppress(OSError):
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.file.flush()
