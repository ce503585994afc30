"""Start of a net: weights from a file with their part in the key; or training images."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from kd.config.construct import parameters_of, resolve_target
from kd.data.base import DataModule
from kd.data.views import normalize, to_unit
from kd.errors import UserError
from kd.files.class_names import count_common, names_from_config, names_in, outputs_for
from kd.files.header import header_of, weights_file
from kd.files.stage_record import ChannelStatistics, ChosenOutputs, StageSpec
from kd.files.store import checksum
from kd.log import say, silence
from kd.nets.build import (
    fresh_node,
    normalization_of,
    pretrained_weights_of,
    set_normalization,
)
from kd.nets.head import head_tensors
from kd.nets.onnx_graph import OnnxGraph
from kd.nets.weights import OutputChoice, load_weights
from kd.shape import Shape
from kd.stages.chain import StagePlan

STARTING = 2**22  # pixels of the images that a net may get for its start


def file_of(plan: StagePlan) -> Path | None:
    """Return the file with a stage's initial weights, checked against the net, or None.

    Raises:
        UserError: the file is missing, or says that it holds another net's weights.
    """
    if plan.path is None:
        return None
    where = f"{plan.start_prefix}path"
    file = weights_file(plan.path, where)
    header = header_of(file)
    if header:
        _agree(header["net"], plan, file)
    return file


def set_start(
    spec: StageSpec, plan: StagePlan, file: Path | None, classes: tuple[str, ...]
) -> None:
    """Set what a stage's start adds to its key: nothing for a fresh net, trained whole.

    Args:
        classes: of the data, by name.

    Raises:
        UserError: the file's net does not know them all.
    """
    if file:
        spec.weights = _checksum(file, file.stat().st_ctime_ns)
    if file and plan.state:
        spec.state = plan.state
    if file and plan.match != "name":
        spec.match = plan.match
    if file and (outputs := _outputs(plan, file, classes)):
        spec.outputs_of_file = outputs
    if said := plan.normalization:
        spec.normalization = ChannelStatistics(mean=list(said.mean), std=list(said.std))
    if plan.trains not in ("all", "none"):
        spec.trains = plan.trains


@lru_cache(maxsize=8)
def _checksum(file: Path, changed: int) -> str:
    """Compute a file's checksum once per modification time: 45 MB take 0.1 s for each sweep job."""
    return checksum(file)


def net_spec(
    node: Mapping[str, object], *others: Mapping[str, object], load: bool = True
) -> tuple[dict[str, object], list[str]]:
    """Return what a net adds to a stage's key: its node, and the names of its pretrained weights.

    Args:
        others: further nodes that the stage builds.
        load: False if the net's weights come from elsewhere.
    """
    # A net may contain another one
    nets = [node, *(value for value in node.values() if isinstance(value, Mapping))]
    asked = any(each.get("pretrained") for each in nets)
    plain = dict(node) if asked else fresh_node(node)  # false equals not set
    nodes = [*(each for each in nets if load and "_target_" in each), *others]
    names = [found.weights for each in nodes if (found := pretrained_weights_of(each, "net"))]
    return plain, names


def load_start(net: nn.Module, file: Path, where: str, spec: StageSpec, shape: Shape) -> None:
    """Load a file, and the normalisation of its net if the file has it.

    Args:
        where: config key of the file, for messages.
        spec: of the stage. If it trains, a last layer with another number of classes starts fresh.

    Raises:
        UserError: the tensors do not fit the net.
    """
    said = spec.outputs_of_file
    if hasattr(net, "read_file") and (spec.state or spec.match):
        raise UserError(f"{where}: {file.name} has no state dict for .state or .match to read")
    if hasattr(net, "read_file"):
        if isinstance(net, OnnxGraph):  # `load_answers` reads the other, with the images' names
            net.read_file(file, where, OutputChoice(said.taken, said.of, []) if said else None)
        return
    try:
        head = head_tensors(net, shape)
    except ValueError:
        head = []
    outputs = None
    if said and not head:
        raise UserError(f"{where}: the net has no last layer whose outputs could be put in order")
    if said:
        outputs = OutputChoice(said.taken, said.of, head)
        say(
            f"{where}: of {file.name}'s {outputs.of} outputs, {len(outputs.taken)} are taken, "
            "by name"
        )
    fresh = head if spec.epochs else []
    load_weights(net, file, where, fresh, spec.state, outputs, spec.match == "order")
    header = header_of(file)
    if header and "mean" in header and "std" in header:
        set_normalization(net, (tuple(header["mean"]), tuple(header["std"])), shape.channels, where)


def try_start(net: nn.Module, plan: StagePlan, file: Path, data: DataModule) -> None:
    """Load a stage's file as a trial, without a word; `net` is changed.

    Raises:
        UserError: the tensors do not fit the net.
    """
    epochs = 0 if plan.trains == "none" else plan.recipe.epochs
    spec = StageSpec(recipe=0, shape=(*data.shape,), data={}, net={}, epochs=epochs)
    with silence():
        set_start(spec, plan, file, data.classes)
        load_start(net, file, f"{plan.start_prefix}path", spec, data.shape)


def start_from_images(net: nn.Module, data: DataModule) -> None:
    """Pass training images to `start_from` of a fresh net, or of a net inside it, if it exists.

    It gets float32 [N, C, H, W], normalised but not augmented: up to 4,096 images of 32x32, fewer
    larger ones, spread evenly over the labelled training part. It must not draw random numbers.
    """
    asking = [module for module in net.modules() if callable(getattr(module, "start_from", None))]
    if not asking:
        return
    pixels = data.training_images.pixels
    count, _, height, width = pixels.shape
    few = min(count, max(1, STARTING // (height * width)))
    sample = to_unit(pixels[torch.arange(few) * count // few])
    images = normalize(sample, *normalization_of(net, data.statistics))
    for module in asking:
        module.start_from(images)  # type: ignore[operator]


def _agree(theirs: Mapping[str, object], plan: StagePlan, file: Path) -> None:
    """Refuse a file that says that its weights belong to another net."""
    # Never theirs: a file must not choose imports
    target, _ = resolve_target(plan.net, plan.where)
    defaults = {name: parameter.default for name, parameter in parameters_of(target).items()}

    def whole(node: Mapping[str, object]) -> dict[str, object]:
        filled = {**defaults, **fresh_node(node)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in filled.items()
        }

    a = whole(theirs)
    b = whole(plan.net)
    other = [
        name for name in a.keys() | b.keys() if name != "pretrained" and a.get(name) != b.get(name)
    ]
    if "_target_" in other:
        other = ["_target_"]  # other keys do not matter then
    if other:
        role = plan.start_prefix.partition(".")[0]
        differs = ", ".join(
            f"{name} {a.get(name)!r} where {plan.where} has {b.get(name)!r}"
            for name in sorted(other)
        )
        raise UserError(
            f"{plan.start_prefix}path: {file} says that it is of another net: {differs}.\n"
            f"  {role}=checkpoint {role}.path=... takes the net that the file names"
        )


def _outputs(plan: StagePlan, file: Path, ours: tuple[str, ...]) -> ChosenOutputs | None:
    """Return which of a file's outputs stand for the data's classes; None if equal or unknown.

    Raises:
        UserError: some of the data's classes are missing in the file.
    """
    if plan.classes is not None:
        where = f"{plan.start_prefix}classes"
        theirs = names_from_config(plan.classes, where)
        taken = outputs_for(theirs, ours, where)
    else:
        where = f"{plan.start_prefix}path"
        said = _file_classes(file, file.stat().st_ctime_ns, where)
        common = count_common(said, ours) if said else 0
        if not said or (common < len(ours) and plan.trains != "none"):
            return None
        # Other words for the same classes, or another number, which the tensors show
        if not common:
            say(f"{where}: {file} calls its classes {_few(said)}; the data calls them {_few(ours)}")
            return None
        theirs = said
        taken = outputs_for(said, ours, f"{where}: {file}")
    same = taken == list(range(len(theirs)))
    return None if same else ChosenOutputs(taken=taken, of=len(theirs))


@lru_cache(maxsize=8)
def _file_classes(file: Path, changed: int, where: str) -> list[str] | None:
    """Read the class names of a file, once per modification time."""
    return names_in(file, where)


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:5])) + (" ..." if len(names) > 5 else "")
