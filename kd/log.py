"""What a command says while it works: plain lines on stderr, so that stdout holds results alone."""

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

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
