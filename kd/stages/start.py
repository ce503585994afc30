"""Where a net starts from: its file, what that adds to the stage's key, whether the two fit; or training images."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd.config.construct import parameters_of, resolve_target
from kd.data.base import DataModule
from kd.data.views import normalize, to_unit
from kd.errors import UserError
from kd.files.class_names import names_given, names_in, outputs_for, shared
from kd.files.header import header_of, weights_file
from kd.files.store import checksum
from kd.log import say
from kd.nets.build import (
    normalization_of,
    pretrained_of,
    set_normalization,
    without_pretrained,
)
from kd.nets.head import head_tensors
from kd.nets.weights import OutputChoice, load_weights
from kd.shape import Shape
from kd.stages.chain import Link

STARTING = 2**22  # pixels of the images that a net may ask for when it starts


def file_of(link: Link) -> Path | None:
    """The file to take a stage's weights from, None where there is none; checked against the net.

    Raises:
        UserError: there is no such file, or it says itself that it holds another net's weights.
    """
    if link.path is None:
        return None
    where = f"{link.given_at}path"
    file = weights_file(link.path, where)
    header = header_of(file)
    if header:
        _agree(header["net"], link, file)
    return file


def start_spec(link: Link, file: Path | None, classes: tuple[str, ...]) -> dict[str, Any]:
    """What the start of a stage's training adds to its key: nothing where that is a fresh net, trained whole.

    Args:
        classes: the data's, by name.

    Raises:
        UserError: the file's net does not know them all.
    """
    spec: dict[str, Any] = {"weights": _checksum(file, file.stat().st_ctime_ns)} if file else {}
    if file and link.state:
        spec["state"] = link.state
    if file and (outputs := _outputs(link, file, classes)):
        spec["outputs_of_file"] = outputs
    if link.normalization:
        spec["normalization"] = link.normalization.model_dump()
    if link.trains in ("head", "loss"):
        spec["trains"] = link.trains
    return spec


@lru_cache(maxsize=8)
def _checksum(file: Path, changed: int) -> str:
    """Of a file as it was at that time. Each job of a sweep asks several times, and 45 MB take a tenth of a second."""
    return checksum(file)


def net_spec(
    node: Mapping[str, Any], *others: Mapping[str, Any], load: bool = True
) -> dict[str, Any]:
    """What a net adds to a stage's key: its node, and the weights that come with it.

    Args:
        others: nodes of whatever else the stage builds.
        load: False where the net's weights come from elsewhere.
    """
    nets = [
        node,
        *(value for value in node.values() if isinstance(value, Mapping)),
    ]  # a net may hold another one
    asked = any(each.get("pretrained") for each in nets)
    plain = dict(node) if asked else without_pretrained(node)  # false is as good as not said
    nodes = [*(each for each in nets if load and "_target_" in each), *others]
    names = [found.weights for each in nodes if (found := pretrained_of(each, "net"))]
    return {"net": plain, "pretrained": names} if names else {"net": plain}


def load_start(
    net: nn.Module, file: Path, where: str, spec: Mapping[str, Any], shape: Shape
) -> None:
    """Load a file, and note the normalisation that its net was trained with where the file says it.

    Args:
        where: the config's key for the file, for messages.
        spec: the stage's. Where training follows, a last layer for another number of classes starts afresh.

    Raises:
        UserError: the tensors are not the net's.
    """
    try:
        head = head_tensors(net, shape)
    except ValueError:
        head = []
    said, outputs = spec.get("outputs_of_file"), None
    if said and not head:
        raise UserError(f"{where}: the net has no last layer whose outputs could be put in order")
    if said:
        outputs = OutputChoice(said["taken"], said["of"], head)
        say(
            f"{where}: of {file.name}'s {outputs.of} outputs, {len(outputs.taken)} are taken, by name"
        )
    fresh = head if spec["epochs"] else []
    load_weights(net, file, where, fresh, spec.get("state"), outputs)
    header = header_of(file)
    if header and "mean" in header and "std" in header:
        set_normalization(net, (tuple(header["mean"]), tuple(header["std"])), shape.channels, where)


def start_from_images(net: nn.Module, data: DataModule) -> None:
    """Show a fresh net training images, where it or a net that it holds has a method `start_from` that asks for them.

    The method gets float32 [N, C, H, W] as the net will see them, but without augmentation: up to 4,096 images of
    32x32, fewer larger ones, evenly spread over the labelled training part. It must draw nothing at random.
    """
    asking = [module for module in net.modules() if callable(getattr(module, "start_from", None))]
    if not asking:
        return
    pixels = data.trained_on.pixels
    count, _, height, width = pixels.shape
    few = min(count, max(1, STARTING // (height * width)))
    sample = to_unit(pixels[torch.arange(few) * count // few])
    images = normalize(sample, *normalization_of(net, data.statistics))
    for module in asking:
        module.start_from(images)  # type: ignore[operator]


def _agree(theirs: Mapping[str, Any], link: Link, file: Path) -> None:
    """Refuse a file that says that its weights are of another net."""
    target, _ = resolve_target(
        link.net, link.where
    )  # never theirs: a file must not choose what is imported
    defaults = {name: parameter.default for name, parameter in parameters_of(target).items()}

    def whole(node: Mapping[str, Any]) -> dict[str, Any]:
        filled = {**defaults, **without_pretrained(node)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in filled.items()
        }

    a, b = whole(theirs), whole(link.net)
    other = [
        name for name in a.keys() | b.keys() if name != "pretrained" and a.get(name) != b.get(name)
    ]
    if "_target_" in other:
        other = ["_target_"]  # the rest says nothing then
    if other:
        role = link.given_at.partition(".")[0]
        differs = ", ".join(
            f"{name} {a.get(name)!r} where {link.where} has {b.get(name)!r}"
            for name in sorted(other)
        )
        raise UserError(
            f"{link.given_at}path: {file} says that it is of another net: {differs}.\n"
            f"  {role}=checkpoint {role}.path=... takes the net that the file names"
        )


def _outputs(link: Link, file: Path, ours: tuple[str, ...]) -> dict[str, Any] | None:
    """Which of a file's outputs stand for the data's classes; None where they are those, or where nothing says it.

    Raises:
        UserError: some of the data's classes are none of the file's.
    """
    if link.classes is not None:
        where = f"{link.given_at}classes"
        theirs = names_given(link.classes, where)
        taken = outputs_for(theirs, ours, where)
    else:
        where = f"{link.given_at}path"
        said = _said(file, file.stat().st_ctime_ns, where)
        common = shared(said, ours) if said else 0
        if not said or (common < len(ours) and link.trains != "none"):
            return None
        if not common:  # other words for the same, or another number, which shows in the tensors
            say(f"{where}: {file} calls its classes {_few(said)}; the data calls them {_few(ours)}")
            return None
        theirs, taken = said, outputs_for(said, ours, f"{where}: {file}")
    same = taken == list(range(len(theirs)))
    return None if same else {"taken": taken, "of": len(theirs)}


@lru_cache(maxsize=8)
def _said(file: Path, changed: int, where: str) -> list[str] | None:
    """The names of a file's classes as it was at that time; read once."""
    return names_in(file, where)


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:5])) + (" ..." if len(names) > 5 else "")
