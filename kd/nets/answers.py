"""Answers of a teacher that is elsewhere, by image, in the place of a net."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kd.errors import UserError
from kd.files.answer_tables import read_answers
from kd.log import number_of
from kd.nets.resized_buffers import ResizedBuffers


class Answers(ResizedBuffers):
    """Answers of a teacher from a file, one an image, which stands for all views of it.

    Asked about pixels it gives zeros [B, num_classes], as it knows images by name only.
    """

    rows: Tensor
    images: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("rows", torch.zeros(1, num_classes))
        self.register_buffer("images", torch.zeros(1, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros [B, num_classes] for x [B, C, H, W]."""
        return x.new_zeros(len(x), self.num_classes)

    def read_file(
        self,
        file: Path,
        where: str,
        classes: Sequence[str],
        outputs: tuple[Sequence[int], int] | None,
    ) -> None:
        """Take over a file of answers; see `kd.files.answer_tables.read_answers`."""
        table = read_answers(file, classes, where, outputs)
        self.rows = torch.from_numpy(table.logits)
        self.images = torch.frombuffer(
            bytearray("\n".join(table.images).encode()), dtype=torch.uint8
        )

    def answers_for(
        self, names: Sequence[str], of_test: bool = False, others: Sequence[str] = ()
    ) -> Tensor:
        """Return logits [N, num_classes] for images by name; NaN where there are none.

        The file may have a name as it is, or the end of it, such as the file name. It may also have
        a path that ends with the name, as from `find`; `train` or `test` may be missing there. What
        is not unique is no match.

        Args:
            of_test: whether they are the test images, whose numbers begin at 0 again.
            others: names of all images of the data.
        """
        own = self.images.cpu().numpy().tobytes().decode().split("\n")
        at = {name: i for i, name in enumerate(own)}
        found = torch.full((len(names), self.num_classes), torch.nan)
        rows = [at.get(f"test/{n}" if of_test and n.isdecimal() else n) for n in names]
        if None in rows:
            longer = _unique_ends(enumerate(own))
            ours = _unique_ends(enumerate(dict.fromkeys([*names, *others])))
            for place, name in enumerate(names):
                if rows[place] is None and not name.isdecimal():
                    rows[place] = _row(name, at, longer, ours)
        for position, row in enumerate(rows):
            if row is not None:
                found[position] = self.rows[row]
        return found

    def check(self, names: Sequence[str], where: str, others: Sequence[str] = ()) -> None:
        """Refuse training images without an answer.

        Args:
            others: names of all images of the data.

        Raises:
            UserError: says how many, and the first.
        """
        gone = self.answers_for(names, others=others).isnan().any(1).nonzero()[:, 0].tolist()
        if gone:
            more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
            own = self.images.cpu().numpy().tobytes().decode().split("\n")
            lacking = ", ".join(names[i] for i in gone[:5])
            raise UserError(
                f"{where}: it has {number_of(len(self.rows), 'answer')}, but none for "
                f"{len(gone)} of the {len(names)} training images: {lacking}{more}. "
                f"Its own images are {', '.join(own[:3])}{', ...' if len(own) > 3 else ''}. Add "
                "the missing rows, or train on the images that it answers for: take the others "
                "out of the folder, or out of data.label_file"
            )


def _ends(name: str) -> list[str]:
    """Return what a path ends with, the longest first: b/c and c of a/b/c."""
    parts = name.split("/")
    return ["/".join(parts[at:]) for at in range(1, len(parts))]


def _unique_ends(names: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Return the ends of paths that only one of them has, with its position."""
    found: dict[str, int | None] = {}
    for at, name in names:
        for end in _ends(name):
            found[end] = None if end in found else at
    return {end: at for end, at in found.items() if at is not None}


def _row(
    name: str, at: Mapping[str, int], longer: Mapping[str, int], ours: Mapping[str, int]
) -> int | None:
    """Return the row of the path that ends with an image's name, or that its name ends with.

    Args:
        at: row of each path of the file.
        longer: row of each end that only one of them has.
        ours: ends that only one image's name has.
    """
    ends = [end for end in _ends(name) if end in ours]
    wholes = [name, *ends[:1]] if "/" in (ends[0] if ends else "") else [name]
    return next(
        (row for row in (*map(longer.get, wholes), *map(at.get, ends)) if row is not None),
        None,
    )
