"""Taps: what a net computes on the way, seen from outside by forward hooks at any module's path.

A tap is the tensor that a module returned at that moment: where a later module writes over it, such as an in-place
ReLU, a copy is kept, and only there.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from kd.errors import UserError
from kd.nets.layer_paths import Place, Points

Side: TypeAlias = Literal["s", "t"]  # student or teacher

# What a loss may ask for of either net, each with `_s` or `_t` after it.
FEATS, PREACTS, POOLED, HEAD = "feats", "preacts", "pooled", "head"
KINDS = (FEATS, PREACTS, POOLED, HEAD)
TAPPED = (FEATS, PREACTS)


class Taps:
    """Watches a net: hooks that record while the net is called through it, and do nothing otherwise.

    They are set once, so that a net compiled afterwards has them in its graph, and go with the net where it is copied
    or sent to another process.

    Args:
        net: what is watched; it may then be called wrapped or compiled.
        points: as from `kd.nets.layer_paths.study`.
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
        wanted = {
            FEATS: self.points.feats,
            PREACTS: self.points.preacts,
            POOLED: (self.points.pooled,),
        }
        return list(dict.fromkeys(p for kind in self.kinds for p in wanted.get(kind, ()) if p))

    def _note(self, place: Place, value: Tensor) -> None:
        if self.on:
            self.found[place] = value.clone() if place in self.points.copied else value

    def __call__(
        self, call: Callable[[Tensor], Tensor], x: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
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


def _entering(
    note: Callable[[Tensor], None], module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    note(inputs[0])


def _leaving(
    note: Callable[[Tensor], None], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    note(output)


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
