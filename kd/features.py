"""Taps: what a net computes on the way, seen from outside by forward hooks at any module's path.

A tap is the tensor that a module returned at that moment: where a later module writes over it, such as an in-place
ReLU, a copy is kept, and only there. One dry pass, on a copy of the net, finds out where that is and which shapes come.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from kd.errors import UserError, nearest
from kd.nets.build import Shape
from kd.nets.head import head_of

Side: TypeAlias = Literal["s", "t"]  # student or teacher

# What a loss may ask for of either net, each with `_s` or `_t` after it.
FEATS, PREACTS, POOLED, HEAD = "feats", "preacts", "pooled", "head"
KINDS = (FEATS, PREACTS, POOLED, HEAD)
TAPPED = (FEATS, PREACTS)

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
)
MOST = 4  # taps, where the net does not say which


class Place(NamedTuple):
    """Where a tensor is seen: a module, and what it gets or what it returns; the last time that the net calls it."""

    path: str
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Points:
    """Where a net is looked at, and what comes there.

    Attributes:
        feats: the taps, in order.
        preacts: for each tap what its last activation gets, or the tap itself where it does not end in one.
        pooled: what the last linear layer gets; None where the net has no one such layer.
        head: that layer's path.
        copied: places whose tensor is written over before the forward pass ends.
        shapes: of one image at each tap, (channels, H, W), (tokens, channels) or (channels,).
        width: numbers in the pooled embedding of an image; 0 without one.
    """

    feats: tuple[Place, ...]
    preacts: tuple[Place, ...]
    pooled: Place | None
    head: str | None
    copied: frozenset[Place]
    shapes: tuple[tuple[int, ...], ...]
    width: int


class Taps:
    """Watches a net: hooks that record while the net is called through it, and do nothing otherwise.

    They are set once, so that a net compiled afterwards has them in its graph, and go with the net where it is copied
    or sent to another process.

    Args:
        net: what is watched; it may then be called wrapped or compiled.
        points: as from `study`.
        kinds: which of `KINDS` are wanted.

    Raises:
        UserError: `pooled` or `head` is wanted, and the net does not end in one linear layer.
    """

    def __init__(self, net: nn.Module, points: Points, kinds: Collection[str]) -> None:
        if {POOLED, HEAD} & set(kinds) and points.pooled is None:
            raise UserError(
                f"loss: asks for the embedding that the last linear layer gets, but {type(net).__name__} "
                "does not end in one such layer"
            )
        self.net, self.points, self.kinds = net, points, tuple(kinds)
        self.on = False
        self.found: dict[Place, Tensor] = {}
        for place in self.places:
            module, note = net.get_submodule(place.path), partial(self._note, place)
            if place.side == "input":
                module.register_forward_pre_hook(partial(_entering, note))
            else:
                module.register_forward_hook(partial(_leaving, note))

    @property
    def places(self) -> list[Place]:
        """All that is watched, each once."""
        wanted = {FEATS: self.points.feats, PREACTS: self.points.preacts, POOLED: (self.points.pooled,)}
        return list(dict.fromkeys(p for kind in self.kinds for p in wanted.get(kind, ()) if p))

    def _note(self, place: Place, value: Tensor) -> None:
        if self.on:
            self.found[place] = value.clone() if place in self.points.copied else value

    def __call__(self, call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The logits for x, and what was wanted, by kind.

        Args:
            call: the net itself, or what wraps it.

        Returns:
            logits [B, C]; and `feats` and `preacts`, lists of tensors [B, ...] in the order of the taps, `pooled`
            [B, D], and `head`, the module that makes logits of it.
        """
        self.on = True
        try:
            logits = call(x)
            seen: dict[str, Any] = {
                kind: [self.found[place] for place in places]
                for kind, places in ((FEATS, self.points.feats), (PREACTS, self.points.preacts))
                if kind in self.kinds
            }
            if POOLED in self.kinds and self.points.pooled:
                seen[POOLED] = self.found[self.points.pooled].flatten(1)
        finally:
            self.on = False
            self.found.clear()  # or they would keep the graph alive, and could not be copied with the net
        if HEAD in self.kinds and self.points.head is not None:
            seen[HEAD] = self.net.get_submodule(self.points.head)
        return logits, seen


def _entering(note: Callable[[Tensor], None], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    note(inputs[0])


def _leaving(note: Callable[[Tensor], None], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    note(output)


def study(net: nn.Module, paths: Sequence[str], shape: Shape, *, where: str, training: bool = False) -> Points:
    """Look where the taps are, in one dry pass of a copy of the net; the net itself, and the random state, stay as is.

    Args:
        paths: of the modules to tap; may be none.
        where: the config's key for them, for messages.
        training: the mode to look at it in, as other tensors may be written over in it.

    Raises:
        UserError: there is no such module, it returns no tensor, or the net does not come by it.
    """
    modules = dict(net.named_modules())
    for path in paths:
        if path not in modules or not path:
            raise UserError(f"{where}: the net has no module {path!r}{_suggested(path, modules)}")
    record = _dry(net, shape, training)
    for path in paths:
        if path not in record.outputs:
            raise UserError(f"{where}: the net's forward pass does not come by {path!r}; choose another module")
        if not isinstance(record.outputs[path], Tensor) or record.outputs[path].ndim < 2:
            kind = type(record.outputs[path]).__name__
            raise UserError(f"{where}: {path!r} gives a {kind}, needed is a tensor [B, ...]{_suggested(path, modules)}")
    feats = tuple(Place(path, "output") for path in paths)
    preacts = tuple(
        Place(found, "input") if (found := record.activation(path)) else Place(path, "output") for path in paths
    )
    head = _head(net, shape)
    pooled = Place(head, "input") if head is not None and head in record.inputs else None
    return Points(
        feats,
        preacts,
        pooled,
        head,
        frozenset(place for place in (*feats, *preacts, *([pooled] if pooled else [])) if record.written(place)),
        tuple(tuple(record.outputs[path].shape[1:]) for path in paths),
        record.inputs[head].flatten(1).shape[1] if pooled and head is not None else 0,
    )


def _suggested(path: str, modules: Collection[str]) -> str:
    """The nearest path, and those there are around it; no more than fit into a few lines."""
    names = [name for name in modules if name]
    parent = path.rpartition(".")[0]
    while parent and parent not in modules:
        parent = parent.rpartition(".")[0]
    level = parent.count(".") + 2 if parent else 1
    beside = [
        name for name in names if name.count(".") + 1 == level and name.startswith(f"{parent}." if parent else "")
    ]
    near = nearest(path, names)
    return f"{near}; {f'in {parent!r}' if parent else 'at the top'} it has {', '.join(beside[:30]) or 'none'}"


def _head(net: nn.Module, shape: Shape) -> str | None:
    try:
        heads = list(head_of(net, shape))
    except ValueError:
        return None
    return heads[0] if len(heads) == 1 else None


@dataclass
class _Record:
    """A forward pass: what each module got and returned the last time, and how often each tensor had been written."""

    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    versions: dict[tuple[str, str], int] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    activations: set[str] = field(default_factory=set)

    def entering(self, path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            self.inputs[path], self.versions[path, "input"] = inputs[0], inputs[0]._version

    def leaving(self, path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.outputs[path] = output
        self.order = [*(each for each in self.order if each != path), path]
        if isinstance(output, Tensor):
            self.versions[path, "output"] = output._version

    def written(self, place: Place) -> bool:
        """Whether the tensor was written over between that moment and the end."""
        tensor = (self.inputs if place.side == "input" else self.outputs)[place.path]
        return bool(tensor._version != self.versions[place.path, place.side])

    def activation(self, path: str) -> str | None:
        """The activation whose result a module returns as its own; None where there is none."""
        same = (name for name in self.activations if self.outputs.get(name) is self.outputs[path])
        return next((name for name in same if name in self.inputs), None)


def _dry(net: nn.Module, shape: Shape, training: bool) -> _Record:
    """What happens in a forward pass on two random images, which nothing of the net is left with."""
    record, dummy = _Record(), copy.deepcopy(net).train(training)
    for path, module in dummy.named_modules():
        module.register_forward_pre_hook(partial(record.entering, path))
        module.register_forward_hook(partial(record.leaving, path))
        if isinstance(module, ACTIVATIONS):
            record.activations.add(path)
    device = next((parameter.device for parameter in dummy.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        dummy(torch.randn(2, shape.channels, shape.image_size, shape.image_size).to(device))
    return record


def default_taps(net: nn.Module, shape: Shape) -> list[str]:
    """Where to look at a net that nobody has named taps for; in the order of the forward pass, at most a few.

    It is what the net says itself in `taps`, as ours do; of timm's, what `feature_info` says; of others the last module
    with parameters, not deeper than two levels, at each resolution.
    """
    own = getattr(net, "taps", None)
    if isinstance(own, (tuple, list)):
        return [str(path) for path in own]
    if info := getattr(net, "feature_info", None):
        modules = dict(net.named_modules())
        named = [str(each["module"]) for each in info if each.get("module") in modules]
        if named:
            step = max(1, len(named) // MOST) if len(named) > MOST + 1 else 1
            return named[::-1][::step][:MOST][::-1]
    last: dict[tuple[int, ...], str] = {}
    record = _dry(net, shape, training=False)
    for path in record.order:
        output = record.outputs[path]
        deep = path.count(".") > 1 or not path
        if deep or not isinstance(output, Tensor) or output.ndim < 3:
            continue
        if next(net.get_submodule(path).parameters(), None) is not None:
            size = output.shape[2:] if output.ndim == 4 else output.shape[1:2]
            last.pop(tuple(size), None)  # so that it comes after those met before
            last[tuple(size)] = path
    return list(last.values())[-MOST:]


def pair(
    student: nn.Module, teacher: nn.Module | None, taps_s: list[str] | None, taps_t: list[str] | None, shape: Shape
) -> tuple[list[str], list[str]]:
    """The taps of student and teacher, as many of the one as of the other.

    Where the config names only those of one net, or of none, the last ones of the longer list are taken.

    Args:
        teacher: None where no loss looks into it.
        taps_s, taps_t: as the config names them; None for the net's own.

    Raises:
        UserError: the config names unequal numbers; or nobody has named any, and none are found.
    """
    one = _some(student, taps_s, shape, "student.taps")
    if teacher is None:
        return one, []
    two = _some(teacher, taps_t, shape, "teacher.taps")
    if taps_s and taps_t and len(one) != len(two):
        raise UserError(
            f"student.taps: found {len(one)} ({', '.join(one)}), teacher.taps has {len(two)} ({', '.join(two)}); "
            "they are taken in pairs"
        )
    for named, other, where in ((taps_s, two, "teacher.taps"), (taps_t, one, "student.taps")):
        if named and len(named) > len(other):
            raise UserError(f"{where}: must be given: the net has {len(other)} of its own, the other net {len(named)}")
    count = min(len(one), len(two))
    return one[-count:], two[-count:]


def _some(net: nn.Module, named: list[str] | None, shape: Shape, where: str) -> list[str]:
    found = named or default_taps(net, shape)
    if not found:
        modules = [name for name, _ in net.named_modules() if name]
        raise UserError(
            f"{where}: must be given: {type(net).__name__} has no maps to look at by itself; its modules are "
            f"{', '.join(modules[:40])}{' ...' if len(modules) > 40 else ''}"
        )
    return found


def kinds_of(signals: Collection[str], side: Side) -> list[str]:
    """Which of `KINDS` a loss asks for, of the student (`s`) or the teacher (`t`)."""
    return [kind for kind in KINDS if f"{kind}_{side}" in signals]


def offered(student: Points | None, teacher: Points | None, labels: Tensor) -> dict[str, Any]:
    """What a loss that learns may ask for by name when it is built, for layers that fit.

    Args:
        labels: of all training images, int64 [N], -1 for none.
    """
    return {
        "shapes_s": student.shapes if student else (),
        "shapes_t": teacher.shapes if teacher else (),
        "width_s": student.width if student else 0,
        "width_t": teacher.width if teacher else 0,
        "labels": labels,
    }


def named(seen: Mapping[str, Any], side: Side) -> dict[str, Any]:
    """What `Taps` saw, as the signals of the student (`s`) or the teacher (`t`)."""
    return {f"{kind}_{side}": value for kind, value in seen.items()}
