"""Text tables and their cells."""

from collections.abc import Sequence
from dataclasses import dataclass

TextRows = list[list[str]]


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and the number to sort by."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """A text table.

    Attributes:
        columns: headings, with units.
        cells: by row.
        words: which columns are words; the others are numbers.
    """

    columns: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    words: Sequence[int] = (1,)
