"""What a command says while it works: plain lines on stderr, so that stdout holds results alone."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import track

from kd.files.writing import writing

T = TypeVar("T")

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line to the person at the terminal, or to the job's log."""
    console.print(printable(message), markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """Text for a terminal or a file of text: control characters, which may come from files, are shown and not obeyed.

    Ends of lines and tabs stay.
    """
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def one_line(text: str) -> str:
    """The same, without the ends of lines and the tabs, as a name should be."""
    return printable(text).replace("\n", "\\x0a").replace("\t", "\\x09")


def waiting(steps: Sequence[T], what: str) -> Iterator[T]:
    """Go through the steps, with a bar that shows how far it is, on a terminal alone, and that leaves no trace."""
    yield from track(steps, what, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def into(path: Path) -> Iterator[Console]:
    """A file in the place of stderr, for all that is said meanwhile; what a full disk has no room for is lost."""
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
    """A text file that never fails."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, text: str) -> int:
        with suppress(OSError):
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.file.flush()
