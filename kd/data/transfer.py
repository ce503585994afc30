"""The transfer set: which training images, and which of their labels, the student and the baseline may see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kd.data.images import Images
from kd.errors import UserError, nearest

# What a stage sees of the training part. `all`: every image and label, as the teacher does. `transfer`: the transfer
# set, where images without a label count too. `labels`: those images of the transfer set that have a label.
Sees = Literal["all", "transfer", "labels"]

UNLABELED = -1

Labels = int | float | str | None


def check_labels(asked: Labels) -> None:
    """Check `data.labels` as far as that needs no images.

    Raises:
        UserError: it is neither a count, nor a share, nor a file.
    """
    if asked is None or isinstance(asked, str):
        return
    count = isinstance(asked, int) and not isinstance(asked, bool) and asked >= 1
    share = isinstance(asked, float) and 0 < asked < 1
    if not (count or share):
        raise UserError(
            f"data.labels: found {asked!r}; accepted are null for all labels, a whole number of images from 1, a "
            "share of them between 0 and 1, or a file that lists images"
        )


def labels_to_keep(
    train: Images, asked: Labels, seed: int, classes: Sequence[str], elsewhere: Sequence[str] = ()
) -> Tensor:
    """Which of the training images keep their label.

    Args:
        train: the training images that are shown, all with their labels.
        asked: how many of them, what share of them, or a file that lists them, a name a line; None for all.
        seed: of the choice, which is stratified by class; a larger choice has a smaller one in it.
        elsewhere: names of images that are not training images, but that a list may name too.

    Returns:
        their positions, int64, in order.

    Raises:
        UserError: there are not so many images, not one for each class, or the file names an unknown one.
    """
    if asked is None:
        return torch.arange(len(train))
    if isinstance(asked, str):
        return torch.tensor(_listed(train, Path(asked).expanduser(), set(elsewhere)))
    count = asked if isinstance(asked, int) else round(asked * len(train))
    present = int((torch.bincount(train.labels) > 0).sum())
    if not present <= count <= len(train):
        found = f"{asked}" if count == asked else f"{asked}, a share that makes {count} images"
        raise UserError(
            f"data.labels: found {found}; accepted are {present} (one for each class) to {len(train)} (all training "
            f"images of the {len(classes)} classes that the student sees)"
        )
    return torch.tensor(_spread(train.labels, seed)[:count]).sort().values


def _spread(labels: Tensor, seed: int) -> list[int]:
    """All positions, such that the first so many are stratified by class, with one of each class before any second."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    totals = torch.bincount(labels).tolist()
    taken = [0] * len(totals)
    place = {}
    for position in order:
        label = int(labels[position])
        place[position] = (taken[label] > 0, (taken[label] + 0.5) / totals[label])
        taken[label] += 1
    return sorted(order, key=place.__getitem__)


def _listed(train: Images, file: Path, elsewhere: set[str]) -> list[int]:
    """The positions of the images that a file lists."""
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"data.labels: cannot read {file.absolute()}: {reason}; accepted are null, a whole number, a share below "
            "1, or a text file with an image's name on each line"
        ) from None
    names = dict.fromkeys(line for line in lines if line and not line.startswith("#"))
    places = {name: i for i, name in enumerate(train.names)}
    unknown = [name for name in names if name not in places and name not in elsewhere]
    if unknown:
        few = ", ".join(map(repr, unknown[:3])) + (" ..." if len(unknown) > 3 else "")
        raise UserError(
            f"data.labels: {file} names {len(unknown)} images that are not there: {few}; the training images are "
            f"called {train.names[0]!r} to {train.names[-1]!r}{nearest(unknown[0], list(places))}"
        )
    kept = sorted(places[name] for name in names if name in places)
    if not kept:
        raise UserError(f"data.labels: {file} names no training image")
    return kept
