"""A table of text, and its cells."""

from collections.abc import Sequence
from dataclasses import dataclass

TextRows = list[list[str]]


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the number to sort by."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: headings, with units.
        cells: by row.
        words: which columns are words, the others being numbers.
    """

    columns: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    words: Sequence[int] = (1,)
