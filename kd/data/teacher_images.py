"""The teacher's images: of another source where it has one, and at its own size."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from kd.data.decode import Reading, checked_reading
from kd.data.images import Images
from kd.data.other_source import label_order, sized_source, unseen
from kd.data.rendering import as_read
from kd.data.transfer import check_sees_all
from kd.errors import UserError
from kd.shape import height_and_width, image_size

if TYPE_CHECKING:
    from kd.data.base import DataModule


def reads_of_teacher(data: "DataModule") -> dict[str, Any] | None:
    """Return how the teacher reads images, for `kd.data.rendering.as_read`; None: as the student.

    Raises:
        UserError: its crop ratio crops nothing.
    """
    asked = dict(data.teacher_reading or {})
    size = image_size(*height_and_width(asked.pop("image_size", data.shape.image_size)))
    reading = checked_reading("teacher", **{**asdict(data.reading), **asked})
    if size == data.shape.image_size and reading == data.reading:
        return None
    return {"image_size": size, **asdict(reading)}


def at_teacher_size(data: "DataModule", reads: Mapping[str, Any] | None) -> "DataModule":
    """Return data as the teacher reads it."""
    if reads is None:
        return data
    split = data.split
    train, val, test = (as_read(part, reads) for part in (split.train, split.val, split.test))
    found = data.with_split(replace(split, train=train, val=val, test=test, unlabeled=None))
    found.statistics = data.statistics  # they hardly depend on the size
    found.reading = Reading(**{k: v for k, v in reads.items() if k != "image_size"})
    found._for_teacher = found
    return found


def other_source(
    kind: "type[DataModule]", node: Mapping[str, object], data: "DataModule"
) -> "DataModule":
    """Build the other source that the teacher trains on, with the labels of the run's data.

    Args:
        kind: the class that every source has.
        node: builds the source.
        data: of the run.

    Raises:
        UserError: it has other classes, or shows the teacher only some labels.
    """
    where = "teacher.data"
    other = sized_source(kind, node, where, data.shape)
    check_sees_all(other, where)
    split = other.split
    order = label_order(split, where, data.classes, data.shape)
    train, val = (each.with_labels(order[each.labels]) for each in (split.train, split.val))
    other.split = replace(split, train=_not_in_test(train, data), val=val, classes=data.classes)
    for text in other.notes:
        data.note(f"{where}: {text}")
    return other


def _not_in_test(train: Images, data: "DataModule") -> Images:
    """Return the teacher's training images, with `on_duplicate` applied to those in test."""
    test = data.split.test
    if not test:  # kd.tune hides the test part
        return train
    kept = unseen(train, test)
    if not (count := len(train) - len(kept)):
        return train
    text = f"of the {len(train):,} training images of teacher.data, {count:,} are in test too"
    if data.on_duplicate == "stop":
        raise UserError(
            f"data.on_duplicate: found {text}. Set it to warn, or to drop, which leaves them out"
        )
    if data.on_duplicate == "drop":
        data.note(f"{text}; dropped")
        return kept
    data.note(f"{text}; data.on_duplicate=drop leaves them out")
    return train
