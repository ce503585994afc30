"""Answers of a teacher that is elsewhere, by image, in the place of a net."""

from collections import Counter
from collections.abc import Mapping, Sequence
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

    def answers_for(self, names: Sequence[str], of_test: bool = False) -> Tensor:
        """Return logits [N, num_classes] for images by name; NaN where there are none.

        A name is matched as it is, else by what follows its last slash, where that is unique.

        Args:
            of_test: whether they are the test images, whose numbers begin at 0 again.
        """
        own = self.images.cpu().numpy().tobytes().decode().split("\n")
        at = {name: i for i, name in enumerate(own)}
        short = _unique({name.rpartition("/")[2]: i for name, i in at.items()}, own)
        ours = Counter(name.rpartition("/")[2] for name in names)
        found = torch.full((len(names), self.num_classes), torch.nan)
        for position, name in enumerate(names):
            last = name.rpartition("/")[2]
            row = at.get(f"test/{name}" if of_test and name.isdecimal() else name)
            if row is None and ours[last] == 1 and not name.isdecimal():
                row = short.get(last)
            if row is not None:
                found[position] = self.rows[row]
        return found

    def check(self, names: Sequence[str], where: str) -> None:
        """Refuse training images without an answer.

        Raises:
            UserError: says how many, and the first.
        """
        gone = self.answers_for(names).isnan().any(1).nonzero()[:, 0].tolist()
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


def _unique(short: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Return the short names that only one of the names has."""
    counts = Counter(name.rpartition("/")[2] for name in names)
    return {name: i for name, i in short.items() if counts[name] == 1}
