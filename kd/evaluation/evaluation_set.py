"""Evaluation set of a finished run: its own test part, or another data set's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from kd.data.base import DataModule, Images
from kd.data.other_source import label_order, sized_source, unseen
from kd.errors import UserError
from kd.log import say
from kd.shape import Shape


@dataclass(frozen=True)
class EvaluationSet:
    """Images for evaluating nets, with labels in the order of the run's classes.

    Attributes:
        name: of the data set, as in `data=NAME`.
        part: description of the part.
        other: whether it is another data set than the run's.
        left_out: number of images left out because the nets were trained or selected on them.
        skipped: files that could not be decoded.
    """

    images: Images
    name: str
    root: str
    part: str
    other: bool = False
    left_out: int = 0
    skipped: Sequence[Mapping[str, str]] = field(default_factory=list)


def of_own(own: DataModule | None) -> EvaluationSet:
    """Return the test part of the run's own data."""
    assert own is not None
    return EvaluationSet(
        own.split.test, own.name, str(own.root.resolve()), "the test part", skipped=own.skipped
    )


def of_other(
    node: Mapping[str, object],
    classes: Sequence[str],
    shape: Shape,
    own: DataModule | None,
    reading: Mapping[str, object] | None = None,
    several: bool = False,
) -> EvaluationSet:
    """Return another data set's test part, or all of it without one, minus what the nets have seen.

    Args:
        node: the config's `data`.
        classes: of the run, in the order of its labels.
        shape: of the run's nets.
        own: the run's own data, if available.
        reading: keywords for how image files are read, in place of the node's.
        several: whether an image of the run may have several labels.

    Raises:
        UserError: its classes differ, or the nets do not take its images.
    """
    data = sized_source(DataModule, node, "data", shape, reading or {})
    source = data.read()
    order = label_order(source, "data", classes, shape)
    images, part = (source.test, "its test part") if source.test else (source.train, "all of it")
    if not source.test and source.val:
        images = images.join(source.val)
    images = Images(images.pixels, _in_order(images.labels, order, several))
    kept = unseen(images, *(_images_of_nets(own) if own else ()))
    if not len(kept):
        raise UserError(
            "data: the run's nets were trained on all of these images, or chosen by them"
        )
    left_out = len(images) - len(kept)
    return EvaluationSet(
        kept, data.name, str(data.root.resolve()), part, True, left_out, data.skipped
    )


def _in_order(labels: Tensor, order: Tensor, several: bool) -> Tensor:
    """Return labels in the order of the run's classes.

    Args:
        order: the run's label of each of the source's classes, int64 [C].
        several: whether an image of the run may have several labels.

    Raises:
        UserError: an image of one of the two may have several labels, and not of the other.
    """
    if several != (labels.ndim == 2):
        found, wanted = ("multiclass", "multilabel") if several else ("multilabel", "multiclass")
        raise UserError(f"data.task: found {found}; accepted is {wanted}, as in the run")
    return labels[:, order.argsort()] if several else order[labels]


def _images_of_nets(own: DataModule) -> list[Images]:
    """Return the images that a run's nets were trained or selected on."""
    seen = [own.split.train, own.split.val, own.split.unlabeled]
    try:
        of_teacher = own.teacher_source.split
    except UserError as error:
        say(f"{error}\n  so the images that the teacher alone has seen are not left out")
    else:
        seen += [of_teacher.train, of_teacher.val]
    return [each for each in seen if each]
