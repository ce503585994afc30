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
OMITTED = -2  # an image that is not shown at all, so it isn't among CRD's negatives either

Labels = int | float | str | None


def omitted_labels(asked: Sequence[str | int] | None, classes: Sequence[str]) -> list[int]:
    """The labels of the classes that the student never sees.

    Args:
        asked: their names.

    Raises:
        UserError: there is no such class, or fewer than two are left.
    """
    names = list(dict.fromkeys(map(str, asked or ())))
    for name in names:
        if name not in classes:
            raise UserError(
                f"data.omit: there is no class {name!r}; accepted are {', '.join(classes)}"
                f"{nearest(name, list(classes))}"
            )
    if len(classes) - len(names) < 2:
        raise UserError(
            f"data.omit: found {len(names)} of {len(classes)} classes; at least two must be left to tell apart"
        )
    return [classes.index(name) for name in names]


def check_labels(asked: Labels, where: str = "data.labels") -> None:
    """Check what asks for labels as far as that needs no images.

    Args:
        where: its key, for messages.

    Raises:
        UserError: it is neither a count, nor a share, nor a file.
    """
    if asked is None or isinstance(asked, str):
        return
    count = isinstance(asked, int) and not isinstance(asked, bool) and asked >= 1
    share = isinstance(asked, float) and 0 < asked < 1
    if not (count or share):
        raise UserError(
            f"{where}: found {asked!r}; accepted are null for all labels, a whole number of images from 1, a "
            "share of them between 0 and 1, or a file that lists images"
        )


def labels_to_keep(
    images: Images,
    asked: Labels,
    seed: int,
    known: Sequence[str] = (),
    where: str = "data.labels",
) -> Tensor:
    """Which of the images keep their label.

    Args:
        images: those that are shown, all with their labels.
        asked: how many of them, what share of them, or a file that lists them, a name a line; None for all.
        seed: of the choice, which is stratified by class; a larger choice has a smaller one in it.
        known: names that a list may hold too, of images that are elsewhere.
        where: the key of `asked`, for messages.

    Returns:
        their positions, int64, in order.

    Raises:
        UserError: there are not so many images, not one for each class, or the file names an unknown one.
    """
    if asked is None:
        return torch.arange(len(images))
    if isinstance(asked, str):
        return torch.tensor(_listed(images, Path(asked).expanduser(), set(known), where))
    count = asked if isinstance(asked, int) else round(asked * len(images))
    present = int((torch.bincount(images.labels) > 0).sum())
    if not present <= count <= len(images):
        found = f"{asked}" if count == asked else f"{asked}, a share that makes {count} images"
        raise UserError(
            f"{where}: found {found}; accepted are {present} (one for each class) to {len(images)} (all images)"
        )
    return torch.tensor(_spread(images.labels, seed)[:count]).sort().values


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


def _listed(images: Images, file: Path, known: set[str], where: str) -> list[int]:
    """The positions of the images that a file lists."""
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{where}: cannot read {file.absolute()}: {reason}; accepted are null, a whole number, a share below "
            "1, or a text file with an image's name on each line"
        ) from None
    names = dict.fromkeys(line for line in lines if line and not line.startswith("#"))
    places = {name: i for i, name in enumerate(images.names)}
    unknown = [name for name in names if name not in places and name not in known]
    if unknown:
        few = ", ".join(map(repr, unknown[:3])) + (" ..." if len(unknown) > 3 else "")
        raise UserError(
            f"{where}: {file} names {len(unknown)} images that are not there: {few}; the images are called "
            f"{images.names[0]!r} to {images.names[-1]!r}{nearest(unknown[0], list(places))}"
        )
    kept = sorted(places[name] for name in names if name in places)
    if not kept:
        raise UserError(f"{where}: {file} names none of the images")
    return kept
