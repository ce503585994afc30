"""Evaluation set of a finished run: its own test part, or another data set's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kd.config.construct import construct, parameters_of, resolve_target
from kd.data.base import DataModule, Images
from kd.errors import UserError
from kd.runs.reader import classes_text
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
    node: Mapping[str, Any], classes: Sequence[str], shape: Shape, own: DataModule | None
) -> EvaluationSet:
    """Return another data set's test part, or all of it without one, minus what the nets have seen.

    Args:
        node: the config's `data`.
        classes: of the run, in the order of its labels.
        shape: of the run's nets.
        own: the run's own data, if available.

    Raises:
        UserError: its classes differ, or the nets do not take its images.
    """
    target, _ = resolve_target(node, "data")
    # Folders are decoded at the nets' size
    sized = {"image_size": shape.image_size, "channels": shape.channels}
    accepted = parameters_of(target)
    data: DataModule = construct(
        {**node, **{k: v for k, v in sized.items() if k in accepted}}, "data"
    )
    source = data.read()
    if set(source.classes) != set(classes):
        raise UserError(
            f"data: {classes_text(source.classes)}, but the run's nets tell apart "
            f"{classes_text(classes)}; accepted is "
            "a data set with the same classes, by name, in any order"
        )
    images, part = (source.test, "its test part") if source.test else (source.train, "all of it")
    if not source.test and source.val:
        images = images.joined(source.val)
    _, *found = images.pixels.shape
    if found != (wanted := [shape.channels, shape.image_size, shape.image_size]):
        sizes = ["x".join(map(str, each)) for each in (found, wanted)]
        raise UserError(
            f"data: its images are {sizes[0]}, the run's nets take {sizes[1]}; of another size "
            f"are accepted folders of "
            "images (data=image_folder), which are decoded as the nets want them"
        )
    order = torch.tensor([classes.index(name) for name in source.classes])
    images = Images(images.pixels, order[images.labels])
    seen = (own.split.train, own.split.val, own.split.unlabeled) if own else ()
    kept = unseen(images, *(each for each in seen if each))
    if not len(kept):
        raise UserError(
            "data: the run's nets were trained on all of these images, or chosen by them"
        )
    left_out = len(images) - len(kept)
    return EvaluationSet(
        kept, data.name, str(data.root.resolve()), part, True, left_out, data.skipped
    )


def unseen(images: Images, *seen: Images) -> Images:
    """Return the images whose pixels are not among the seen ones."""
    known = {digest.tobytes() for each in seen for digest in each.pixels.facts.digests.numpy()}
    digests = images.pixels.facts.digests.numpy()
    return images.at([i for i, digest in enumerate(digests) if digest.tobytes() not in known])
