"""What a command says while it works: plain lines on stderr, so that stdout holds results alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line to the person at the terminal, or to the job's log."""
    console.print(message, markup=False, soft_wrap=True)


def waiting(steps: Sequence[T], what: str) -> Iterator[T]:
    """Go through the steps, with a bar that shows how far it is, on a terminal alone, and that leaves no trace."""
    yield from track(steps, what, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def into(path: Path) -> Iterator[Console]:
    """A file in the place of stderr, for all that is said meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        console.file = file
        try:
            yield console
        finally:
            console.file = None  # type: ignore[assignment]  # rich: stderr again
