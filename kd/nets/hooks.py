"""Feature hooks: forward hooks on modules by path that record intermediate tensors.

A hook records the tensor a module returned at that moment. If a later module overwrites it, such as
an in-place ReLU, a copy is kept; otherwise none is made.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

from kd.errors import UserError
from kd.nets.layer_paths import FeaturePaths, LayerPath

Side: TypeAlias = Literal["s", "t"]  # student or teacher

# Signals that a loss may ask for, of either net, with `_s` or `_t` appended.
FEATS, PREACTS, POOLED, HEAD, MAPS = "feats", "preacts", "pooled", "head", "maps"
KINDS = (FEATS, PREACTS, POOLED, HEAD, MAPS)
LISTS = (FEATS, PREACTS)


class NetOutput(NamedTuple):
    """Output of a net for a batch, of the student or the teacher.

    Attributes:
        logits: [B, num_classes].
        features: what hooks recorded, by kind: `feats` and `preacts`, lists of tensors [B, ...] in
            layer order; `pooled` [B, D]; `head`, the last layer; `maps` [B, D, H, W]. Empty
            without hooks.
    """

    logits: Tensor
    features: Mapping[str, object] = MappingProxyType({})


class FeatureHooks:
    """Hooks that record while the net is called through this object, and are idle otherwise.

    They are set once, so that a net compiled later has them in its graph. They go along when the
    net is copied or sent to another process.

    Args:
        net: the net to hook; it may be wrapped or compiled afterwards.
        paths: as from `kd.nets.layer_paths.study`.
        kinds: those of `KINDS` to record.

    Raises:
        UserError: `pooled` or `head` is asked for, and the net does not end in one linear layer; or
            `maps`, and that layer does not take their mean.
    """

    def __init__(self, net: nn.Module, paths: FeaturePaths, kinds: Collection[str]) -> None:
        if {POOLED, HEAD} & set(kinds) and paths.pooled is None:
            raise UserError(
                "loss: asks for the embedding that the last linear layer gets, but "
                f"{type(net).__name__} does not end in one such layer"
            )
        if MAPS in kinds and paths.maps is None:
            raise UserError(
                "loss: asks for the last maps before global average pooling, but no module of "
                f"{type(net).__name__} gives maps whose mean the last linear layer gets"
            )
        self.net = net
        self.paths = paths
        self.kinds = tuple(kinds)
        self.on = False
        self.found: dict[LayerPath, Tensor] = {}
        for layer in self.layers:
            module = net.get_submodule(layer.path)
            note = partial(self._note, layer)
            if layer.side == "input":
                module.register_forward_pre_hook(partial(_entering, note))
            else:
                module.register_forward_hook(partial(_leaving, note))

    @property
    def layers(self) -> list[LayerPath]:
        """All hooked layers, each once."""
        wanted = {
            FEATS: self.paths.feats,
            PREACTS: self.paths.preacts,
            POOLED: (self.paths.pooled,),
            MAPS: (self.paths.maps,),
        }
        return list(dict.fromkeys(p for kind in self.kinds for p in wanted.get(kind, ()) if p))

    def _note(self, layer: LayerPath, value: Tensor) -> None:
        if self.on:
            self.found[layer] = value.clone() if layer in self.paths.copied else value

    def __call__(self, call: Callable[[Tensor], Tensor], x: Tensor) -> NetOutput:
        """Compute the logits for x [B, C, H, W], and record the features.

        Args:
            call: the net itself, or its wrapper.
        """
        self.on = True
        try:
            logits = call(x)
            seen: dict[str, object] = {
                kind: [self.found[layer] for layer in layers]
                for kind, layers in ((FEATS, self.paths.feats), (PREACTS, self.paths.preacts))
                if kind in self.kinds
            }
            if POOLED in self.kinds and self.paths.pooled:
                seen[POOLED] = self.found[self.paths.pooled].flatten(1)
            if MAPS in self.kinds and self.paths.maps:
                seen[MAPS] = self.found[self.paths.maps]
        finally:
            self.on = False
            # They would keep the graph alive, and could not be copied with the net
            self.found.clear()
        if HEAD in self.kinds and self.paths.head is not None:
            seen[HEAD] = self.net.get_submodule(self.paths.head)
        return NetOutput(logits, seen)


def _entering(
    note: Callable[[Tensor], None], module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    note(inputs[0])


def _leaving(
    note: Callable[[Tensor], None], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    note(output)


def kinds_of(signals: Collection[str], side: Side) -> list[str]:
    """Return those of `KINDS` that a loss asks for, of the student (`s`) or the teacher (`t`)."""
    return [kind for kind in KINDS if f"{kind}_{side}" in signals]


def build_arguments(
    student: FeaturePaths | None, teacher: FeaturePaths | None, labels: Tensor, batch_size: int
) -> dict[str, object]:
    """Return what the constructor of a learned loss may ask for by name, to size its layers.

    Args:
        labels: of all training images, int64 [N], -1 for none.
        batch_size: images that a device sees at once, at most.
    """
    return {
        "shapes_s": student.shapes if student else (),
        "shapes_t": teacher.shapes if teacher else (),
        "width_s": student.width if student else 0,
        "width_t": teacher.width if teacher else 0,
        "labels": labels,
        "batch_size": batch_size,
    }


def as_signals(output: NetOutput | None, side: Side) -> dict[str, object]:
    """Return the output of the student (`s`) or the teacher (`t`) by the names of the signals.

    Args:
        output: None gives no signals.
    """
    if output is None:
        return {}
    features = {f"{kind}_{side}": value for kind, value in output.features.items()}
    return {f"logits_{side}": output.logits, **features}
