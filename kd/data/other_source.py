"""Another source with the run's classes, for training a teacher or for evaluation."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from kd.config.construct import construct, parameters_of, resolve_target
from kd.data.images import Images, Source, Split
from kd.errors import UserError
from kd.shape import Shape

NOTHING: Mapping[str, object] = MappingProxyType({})
T = TypeVar("T")
# A knob of the run's data in a message: at its start, or with a value to type
KNOB = re.compile(r"\Adata(?=[.:])|(?<![\w./])data(?=\.\w+=)")


@contextmanager
def knobs_of(where: str) -> Iterator[None]:
    """Name the knobs in a refusal as those of another source: `teacher.data.root` for `data.root`.

    Args:
        where: config key of the source.
    """
    try:
        yield
    except UserError as error:
        raise type(error)(KNOB.sub(where, str(error))) from error


def sized_source(
    kind: type[T],
    node: Mapping[str, object],
    where: str,
    shape: Shape,
    reading: Mapping[str, object] = NOTHING,
) -> T:
    """Build a source whose image files are decoded at the size that the nets take.

    Args:
        kind: the class that every source has.
        node: builds the source.
        where: its key in the config, for messages.
        shape: of the nets.
        reading: further keywords for how files are decoded, in place of the node's.

    Raises:
        UserError: the node builds no data set.
    """
    target, _ = resolve_target(node, where)
    accepted = parameters_of(target)
    size = {"image_size": shape.image_size, "channels": shape.channels, **reading}
    found = construct({**node, **{k: v for k, v in size.items() if k in accepted}}, where)
    if not isinstance(found, kind):
        raise UserError(f"{where}: {node['_target_']!r} is no data set")
    return found


def label_order(source: Source | Split, where: str, classes: Sequence[str], shape: Shape) -> Tensor:
    """Find the run's label of each of a source's classes, by name; int64 [classes].

    Args:
        where: config key of the source, for messages.
        classes: of the run, in the order of its labels.
        shape: of the run's nets.

    Raises:
        UserError: the classes differ, or the nets do not take the images.
    """
    if set(source.classes) != set(classes):
        raise UserError(
            f"{where}: {classes_text(source.classes)}, but the run's nets are for "
            f"{classes_text(classes)}; accepted is a data set with the same classes, by name, "
            "in any order"
        )
    _, *found = source.train.pixels.shape
    if found != (wanted := [*shape.pixels]):
        sizes = ["x".join(map(str, each)) for each in (found, wanted)]
        raise UserError(
            f"{where}: its images are {sizes[0]}, the run's nets take {sizes[1]}; of another size "
            "are accepted folders of images (data=image_folder), which are decoded as the nets "
            "want them"
        )
    return torch.tensor([list(classes).index(name) for name in source.classes])


def unseen(images: Images, *seen: Images) -> Images:
    """Select the images whose pixels are not among the seen ones."""
    known = {digest.tobytes() for each in seen for digest in each.pixels.facts.digests.numpy()}
    digests = images.pixels.facts.digests.numpy()
    return images.at([i for i, digest in enumerate(digests) if digest.tobytes() not in known])


def classes_text(names: Sequence[str]) -> str:
    """Format the number of classes and the first ten names."""
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} classes ({shown})"
