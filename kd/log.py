"""What a command says while it works: plain lines on stderr, so that stdout holds results alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line to the person at the terminal, or to the job's log."""
    console.print(message, markup=False, soft_wrap=True)


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
