"""The teacher's images: of another source where it has one, and at its own size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from kd.data.decode import Reading, checked_reading
from kd.data.images import Images, Split
from kd.data.other_source import label_order, unseen
from kd.data.rendering import as_read
from kd.shape import Shape, height_and_width, image_size


def reads_of_teacher(
    asked: Mapping[str, Any] | None, reading: Reading, shape: Shape
) -> dict[str, Any] | None:
    """Return how the teacher reads images, for `kd.data.rendering.as_read`; None: as the student.

    Args:
        asked: the teacher's `image_size`, `resize` and so on, where they are its own.
        reading: the student's.
        shape: the student's.

    Raises:
        UserError: its crop ratio crops nothing.
    """
    own = dict(asked or {})
    size = image_size(*height_and_width(own.pop("image_size", shape.image_size)))
    found = checked_reading("teacher", **{**asdict(reading), **own})
    if size == shape.image_size and found == reading:
        return None
    return {"image_size": size, **asdict(found)}


def split_as_read(split: Split, reads: Mapping[str, Any]) -> Split:
    """Return the three parts as the teacher reads them, without the unlabelled images."""
    train, val, test = (as_read(part, reads) for part in (split.train, split.val, split.test))
    return replace(split, train=train, val=val, test=test, unlabeled=None)


def with_labels_of(
    split: Split, classes: Sequence[str], shape: Shape, test: Images, drop: Callable[[str], bool]
) -> Split:
    """Return the parts of `teacher.data` with the labels of the run's data.

    Args:
        split: of the other source.
        classes: of the run, in the order of its labels.
        shape: of the run.
        test: the run's test part; images in it are left out of train where `drop` says so. Empty
            where it is hidden, as by kd.tune.
        drop: receives what was found and decides; see `on_duplicate`.

    Raises:
        UserError: the source has other classes, or by `drop`.
    """
    where = "teacher.data"
    order = label_order(split, where, classes, shape)
    train, val = (each.with_labels(order[each.labels]) for each in (split.train, split.val))
    kept = unseen(train, test) if test else train
    if count := len(train) - len(kept):
        text = f"of the {len(train):,} training images of {where}, {count:,} are in test too"
        train = kept if drop(text) else train
    return replace(split, train=train, val=val, classes=tuple(classes))
