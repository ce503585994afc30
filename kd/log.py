"""Messages of a command: plain lines on stderr, so that stdout has results only."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Print one line to the terminal or the job's log."""
    console.print(printable(message), markup=False, soft_wrap=True)


@contextmanager
def silence() -> Iterator[None]:
    """Print nothing meanwhile, such as in a trial of what is done and told later."""
    before = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = before


def printable(text: str) -> str:
    """Make text safe for a terminal: control characters, which files may hold, are escaped.

    Line ends and tabs are kept.
    """
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def number_of(count: int, noun: str) -> str:
    """Format a count with its noun: 1 epoch, 2 epochs."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def short(count: float) -> str:
    """Format three significant digits with a decimal prefix: 93.9 k, 11.2 M."""
    power = 0
    while count >= 999.5 and power < 3:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {' kMG'[power]}".rstrip()


def bytes_of(count: float) -> str:
    """Format a size, with 1 GB as 10^9 bytes: 93.9 kB, 11.2 MB."""
    return f"{short(count)}B" if count >= 999.5 else f"{count:.3g} B"


def one_line(text: str) -> str:
    """Make text safe as `printable` does, without line ends and tabs."""
    return printable(text).replace("\n", "\\x0a").replace("\t", "\\x09")


def waiting(steps: Sequence[T], what: str) -> Iterator[T]:
    """Iterate with a progress bar, on a terminal only; the bar is removed at the end."""
    yield from track(steps, what, console=console, transient=True, disable=not console.is_terminal)
