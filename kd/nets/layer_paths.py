"""Layer paths of a net and the tensors there, found in one dry pass of a copy."""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from kd.errors import UserError, nearest
from kd.nets.head import head_of
from kd.shape import Shape

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
)


NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm),
    nn.LayerNorm,
)


class LayerPath(NamedTuple):
    """Input or output of a module, at its last call in a forward pass."""

    path: str
    side: Literal["input", "output"]


@dataclass(frozen=True)
class FeaturePaths:
    """Hooked layers of a net, and their tensors.

    Attributes:
        feats: the layers, in order.
        preacts: per layer the input of its last activation. If a stage ends without activation and
            a norm and an activation follow, as in pre-activation nets, the output of that norm;
            otherwise the layer's output.
        pooled: input of the last linear layer; None if the net has no single one.
        head: path of that layer.
        maps: the last maps [B, C, H, W] before global average pooling, whose mean over H and W is
            `pooled`; None if `pooled` is no such mean.
        copied: layers whose tensor is overwritten before the forward pass ends.
        shapes: feature shape of one image per layer: (channels, H, W), (tokens, channels) or
            (channels,).
        width: length of the pooled embedding; 0 without one.
    """

    feats: tuple[LayerPath, ...]
    preacts: tuple[LayerPath, ...]
    pooled: LayerPath | None
    head: str | None
    maps: LayerPath | None
    copied: frozenset[LayerPath]
    shapes: tuple[tuple[int, ...], ...]
    width: int


def study(
    net: nn.Module, paths: Sequence[str], shape: Shape, *, where: str, training: bool = False
) -> FeaturePaths:
    """Inspect the layers in one dry pass of a copy; the net and the random state stay unchanged.

    Args:
        paths: modules to hook; may be empty.
        where: their config key, for messages.
        training: mode of the pass; other tensors may be overwritten in train mode.

    Raises:
        UserError: a module is missing, returns no tensor, or is not reached by the forward pass.
    """
    modules = dict(net.named_modules())
    for path in paths:
        if path not in modules or not path:
            raise UserError(f"{where}: the net has no module {path!r}{_suggestion(path, modules)}")
    record = dry_pass(net, shape, training)
    shapes: list[tuple[int, ...]] = []
    for path in paths:
        if path not in record.outputs:
            raise UserError(
                f"{where}: the net's forward pass does not reach {path!r}; choose another module"
            )
        output = record.outputs[path]
        if not isinstance(output, Tensor) or output.ndim < 2:
            kind = type(output).__name__
            raise UserError(
                f"{where}: {path!r} gives a {kind}, needed is a tensor [B, "
                f"...]{_suggestion(path, modules)}"
            )
        shapes.append(tuple(output.shape[1:]))
    feats = tuple(LayerPath(path, "output") for path in paths)
    preacts = tuple(record.before_activation(path) for path in paths)
    head = _head(net, shape)
    pooled = LayerPath(head, "input") if head is not None and head in record.inputs else None
    # Without dropout, which in train mode may come between the mean and the last layer
    still = dry_pass(net, shape, False) if training and pooled else record
    maps = still.before_average(pooled) if pooled else None
    last = [layer for layer in (pooled, maps) if layer]
    return FeaturePaths(
        feats,
        preacts,
        pooled,
        head,
        maps,
        frozenset(layer for layer in (*feats, *preacts, *last) if record.is_overwritten(layer)),
        tuple(shapes),
        record.inputs[head].flatten(1).shape[1] if pooled and head is not None else 0,
    )


def _suggestion(path: str, modules: Collection[str]) -> str:
    """Suggest the nearest path and its siblings, in a few lines."""
    names = [name for name in modules if name]
    parent = path.rpartition(".")[0]
    while parent and parent not in modules:
        parent = parent.rpartition(".")[0]
    level = parent.count(".") + 2 if parent else 1
    beside = [
        name
        for name in names
        if name.count(".") + 1 == level and name.startswith(f"{parent}." if parent else "")
    ]
    near = nearest(path, names)
    return (
        f"{near}; {f'in {parent!r}' if parent else 'at the top'} it has "
        f"{', '.join(beside[:30]) or 'none'}"
    )


def _head(net: nn.Module, shape: Shape) -> str | None:
    try:
        heads = list(head_of(net, shape))
    except ValueError:
        return None
    return heads[0] if len(heads) == 1 else None


@dataclass
class ForwardRecord:
    """Forward pass: the last input and output of each module, and tensor versions then."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, object] = field(default_factory=dict)
    versions: dict[tuple[str, str], int] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    activations: set[str] = field(default_factory=set)
    norms: list[str] = field(default_factory=list)
    stages: set[str] = field(default_factory=set)  # modules with submodules
    activated: list[Tensor] = field(default_factory=list)

    def entering(self, path: str, module: nn.Module, inputs: tuple[object, ...]) -> None:
        """Hook before a module's forward pass."""
        if inputs and isinstance(inputs[0], Tensor):
            self.inputs[path] = inputs[0]
            self.versions[path, "input"] = inputs[0]._version
            if path in self.activations:
                self.activated.append(inputs[0])

    def leaving(
        self, path: str, module: nn.Module, inputs: tuple[object, ...], output: object
    ) -> None:
        """Hook after a module's forward pass."""
        self.outputs[path] = output
        self.order = [*(each for each in self.order if each != path), path]
        if isinstance(output, Tensor):
            self.versions[path, "output"] = output._version

    def is_overwritten(self, layer: LayerPath) -> bool:
        """Whether the tensor was overwritten between that moment and the end."""
        tensor = (self.inputs if layer.side == "input" else self.outputs)[layer.path]
        assert isinstance(tensor, Tensor)
        return bool(tensor._version != self.versions[layer.path, layer.side])

    def before_activation(self, path: str) -> LayerPath:
        """Find the tensor before a module's last activation; see `FeaturePaths.preacts`."""
        tap = self.outputs[path]
        for name in self.activations:
            if self.outputs.get(name) is tap and name in self.inputs:
                return LayerPath(name, "input")
        for name in self.norms if path in self.stages else ():
            if self.inputs.get(name) is tap and self._is_activated(self.outputs.get(name)):
                return LayerPath(name, "output")
        return LayerPath(path, "output")

    def before_average(self, pooled: LayerPath) -> LayerPath | None:
        """Find the largest maps whose mean over height and width is `pooled`; the last of them."""
        mean = self.inputs[pooled.path].flatten(1)
        found = None
        largest = 0
        for path in self.order:
            layer = LayerPath(path, "output")
            maps = self.outputs[path]
            if not isinstance(maps, Tensor) or maps.ndim != 4 or self.is_overwritten(layer):
                continue
            if maps.shape[1] != mean.shape[1] or maps.numel() < largest or not mean.any():
                continue
            if torch.allclose(maps.mean((2, 3)), mean, rtol=1e-4, atol=1e-6):
                found = layer
                largest = maps.numel()
        return found

    def _is_activated(self, tensor: object) -> bool:
        return any(tensor is each for each in self.activated)


def dry_pass(net: nn.Module, shape: Shape, training: bool) -> ForwardRecord:
    """Record a forward pass on two random images; the net is unchanged."""
    record = ForwardRecord()
    dummy = copy.deepcopy(net).train(training)
    for path, module in dummy.named_modules():
        module.register_forward_pre_hook(partial(record.entering, path))
        module.register_forward_hook(partial(record.leaving, path))
        if isinstance(module, ACTIVATIONS):
            record.activations.add(path)
        if isinstance(module, NORMS):
            record.norms.append(path)
        if next(module.children(), None) is not None:
            record.stages.add(path)
    device = next((parameter.device for parameter in dummy.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        dummy(torch.randn(2, *shape.pixels).to(device))
    return record
