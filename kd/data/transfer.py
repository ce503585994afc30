"""The transfer set: which training images and labels the student and the baseline may see."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kd.data.image_names import ImageNames
from kd.data.images import Images, Split
from kd.data.parts import strata
from kd.errors import UserError, nearest
from kd.log import number_of

# What a stage sees of the training part. `all`: every image and label, as the teacher. `transfer`:
# the transfer set with its unlabelled images. `labels`: its labelled images only.
Sees = Literal["all", "transfer", "labels"]

UNLABELED = -1
OMITTED = -2  # an image that is never shown, so it is no negative of CRD either

VAL = "data.val_labels"

Labels = int | float | str | None


def transfer_split(
    split: Split,
    names: ImageNames,
    labels: Labels,
    seed: int,
    omit: Sequence[str | int] | None,
    val_labels: Labels,
) -> tuple[Split, Tensor]:
    """Return what the student and the baseline may see of a split.

    Args:
        names: of all images that the training part was carved from.
        labels, seed, omit, val_labels: as of `kd.data.base.DataModule`; its `labels_seed`.

    Returns:
        the split with the kept labels, and the unlabelled images at the end of its training part,
        or the same one where nothing is left out. Then the positions of the training images that
        are shown, int64 [N].

    Raises:
        UserError: a choice cannot be made of these images.
    """
    train = split.train
    val = split.val
    # Of multi-label data `omit` is refused
    omitted = torch.isin(strata(train.labels), torch.tensor(omitted_labels(omit, split.classes)))
    seen = (~omitted).nonzero()[:, 0]
    shown = train.at(seen)
    chosen = labels_to_keep(shown, labels, seed, names)
    _note_bare_classes(shown, chosen, split.classes, names.note)
    kept = seen[chosen]
    if len(kept) < len(train):
        left = torch.full_like(train.labels, UNLABELED)
        left[omitted] = OMITTED
        left[kept] = train.labels[kept]
        train = train.with_labels(left)
    if split.unlabeled:
        train = train.join(split.unlabeled)
    if val_labels:
        if not val:
            raise UserError(
                f"{VAL}: found {val_labels}, but data.val_fraction=0 leaves no validation part; "
                "accepted are null or 0"
            )
        val = val.at(labels_to_keep(val, val_labels, seed, names, VAL))
    if train is split.train and val is split.val:
        return split, seen
    return replace(split, train=train, val=val), seen


def _note_bare_classes(
    images: Images, chosen: Tensor, classes: Sequence[str], note: Callable[[str], None]
) -> None:
    """Note the classes that a list labels no image of; counts and shares have one of each.

    Args:
        chosen: positions of the labelled images.
    """
    if images.multilabel:
        return
    labels = images.labels
    if bare := sorted(set(labels.tolist()) - set(labels[chosen].tolist())):
        named = ", ".join(classes[each] for each in bare[:3])
        note(
            f"data.labels names no image of {len(bare)} of {len(classes)} classes ({named}"
            f"{', ...' if len(bare) > 3 else ''}); a net trained alone cannot learn them"
        )


def omitted_labels(asked: Sequence[str | int] | None, classes: Sequence[str]) -> list[int]:
    """Return the labels of the classes that the student never sees.

    Args:
        asked: names of the classes.

    Raises:
        UserError: unknown class, or fewer than two remain.
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
            f"data.omit: found {len(names)} of {len(classes)} classes; at least two must remain"
        )
    return [classes.index(name) for name in names]


def check_labels(asked: Labels, where: str = "data.labels") -> None:
    """Check a setting of `labels` as far as possible without images.

    Args:
        where: its config key, for messages.

    Raises:
        UserError: it is neither a count, nor a share, nor a file.
    """
    if asked is None or isinstance(asked, str):
        return
    count = isinstance(asked, int) and not isinstance(asked, bool) and asked >= 1
    share = isinstance(asked, float) and 0 < asked < 1
    if not (count or share):
        raise UserError(
            f"{where}: found {asked!r}; accepted are null for all labels, "
            f"{'0 for none, ' if where == VAL else ''}a whole number of images from 1, a share of "
            "them between 0 and 1, or a file that lists images"
        )


# Keywords of `kd.data.base.DataModule` for the transfer set, with their defaults.
OF_TRANSFER = {"labels": None, "omit": None, "val_labels": None, "unlabeled": None}


def check_sees_all(data: object, where: str) -> None:
    """Refuse data of a teacher with missing labels or unlabelled images.

    Args:
        data: a `kd.data.base.DataModule`.
        where: its config key, for messages.

    Raises:
        UserError: labels are missing.
    """
    for name, default in OF_TRANSFER.items():
        if (found := getattr(data, name)) != default:
            raise UserError(
                f"{where}.{name}: found {found}, but a teacher sees all images and labels; "
                f"accepted is null. data.{name} is what the student sees"
            )


def labels_to_keep(
    images: Images,
    asked: Labels,
    seed: int,
    names: ImageNames,
    where: str = "data.labels",
) -> Tensor:
    """Choose the images that keep their label.

    Args:
        images: the images shown, all labelled.
        asked: count, share, or file with one name per line; None for all.
        seed: of the choice, which is stratified by class; a larger choice contains a smaller one.
        names: of all images, for a list.
        where: config key of `asked`, for messages.

    Returns:
        their positions, int64 [kept], sorted.

    Raises:
        UserError: the count is out of range, leaves a class empty, or the file names an unknown
            image.
    """
    if asked is None:
        return torch.arange(len(images))
    if isinstance(asked, str):
        return torch.tensor(names.positions(images, Path(asked).expanduser(), where))
    count = asked if isinstance(asked, int) else round(asked * len(images))
    labels = strata(images.labels)
    present = int((torch.bincount(labels) > 0).sum())
    if not present <= count <= len(images):
        share = f"{asked}, a share that makes {number_of(count, 'image')}"
        found = str(asked) if count == asked else share
        none = "0 (none; the last weights are kept), " if where == VAL else ""
        raise UserError(
            f"{where}: found {found}; accepted are {none}{present} (one for each class) to "
            f"{len(images)} (all images)"
        )
    return torch.tensor(_spread(labels, seed)[:count]).sort().values


def _spread(labels: Tensor, seed: int) -> list[int]:
    """Order all positions so that every prefix is stratified by class, one of each class first."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    totals = torch.bincount(labels).tolist()
    taken = [0] * len(totals)
    place = {}
    for position in order:
        label = int(labels[position])
        place[position] = (taken[label] > 0, (taken[label] + 0.5) / totals[label])
        taken[label] += 1
    return sorted(order, key=place.__getitem__)
