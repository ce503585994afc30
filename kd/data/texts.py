"""Many short texts in one buffer."""

from array import array
from collections.abc import Iterable, Sequence
from os import fsdecode, fsencode
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Texts(Sequence[str]):
    """Texts such as file names, at their length and 8 bytes each; a str takes 50 bytes more.

    Selections share one buffer.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        buffer = bytearray()
        ends = array("q", (0,))
        for text in texts:
            buffer += fsencode(text)  # names of files may be no text
            ends.append(len(buffer))
        self._buffer = bytes(buffer)
        self._ends = np.frombuffer(ends, np.int64)
        self._rows: NDArray[np.int64] | None = None  # selected; None for all

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, where: int) -> str: ...
    @overload
    def __getitem__(self, where: slice) -> "Texts": ...
    def __getitem__(self, where: int | slice) -> "str | Texts":
        if isinstance(where, slice):
            return self.at(np.arange(len(self))[where])
        row = range(len(self))[where] if self._rows is None else int(self._rows[where])
        return fsdecode(self._buffer[self._ends[row] : self._ends[row + 1]])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def at(self, positions: NDArray[np.int64]) -> "Texts":
        """Select the texts at these positions, int64 [N]."""
        found = Texts.__new__(Texts)
        found._buffer = self._buffer
        found._ends = self._ends
        found._rows = positions if self._rows is None else self._rows[positions]
        return found
