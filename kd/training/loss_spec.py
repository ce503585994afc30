"""The loss, read once from its config node and checked before anything is built."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from kd.config.construct import check_values, resolve_target
from kd.config.schedules import (
    ANY,
    NOT_NEGATIVE,
    POSITIVE,
    Schedule,
    is_schedule,
    make_schedule,
)
from kd.data.views import Augment, make_augment
from kd.errors import UserError, nearest

# Signals that a loss may ask for by parameter name. logits [B, C]; target int64 [B], or soft labels
# [B, C] whose rows sum to 1; index [B]; x, the student's input, [B, channels, H, W]; epoch, an int
# from 0; progress in [0, 1]. Of student and teacher: feats, a list of tensors [B, ...], one per
# hooked layer; preacts, the same before the layer's last activation; pooled, input of the last
# linear layer, [B, D]; head, that layer; maps, the maps before global average pooling,
# [B, D, H, W], whose mean is pooled. strong_s and strong_t are logits of a strong view of the same
# images, as the loss's `strong` says.
FEATURES = (
    "feats_s",
    "feats_t",
    "preacts_s",
    "preacts_t",
    "pooled_s",
    "pooled_t",
    "head_s",
    "head_t",
    "maps_s",
    "maps_t",
)
STRONG = ("strong_s", "strong_t")
SIGNALS = ("logits_s", "logits_t", *STRONG, "target", "index", "x", "epoch", "progress", *FEATURES)

# Constructor arguments that a loss module may ask for: feature shapes of one image per hooked
# layer, widths of the pooled embeddings, the labels of all training images, int64 [N], -1 for
# none, and how many images a device sees at once, at most.
BUILD_ARGUMENTS = (
    "num_classes",
    "in_channels",
    "image_size",
    "shapes_s",
    "shapes_t",
    "width_s",
    "width_t",
    "labels",
    "batch_size",
)


@dataclass(frozen=True)
class TermSpec:
    """One summand of the loss.

    Attributes:
        name: its key in `terms`.
        where: config key of its loss, for messages.
        path: dotted path of `target`.
        target: loss function, or class of a loss that learns.
        weight: as a function of progress.
        signals: inputs that it asks for; see `SIGNALS`.
        build: keywords for the class.
        build_arguments: those of `BUILD_ARGUMENTS` that it asks for.
        constants: constant keywords of each step.
        scheduled: scheduled keywords of each step, as functions of progress.
    """

    name: str
    where: str
    path: str
    target: Callable[..., object]
    weight: Schedule
    signals: tuple[str, ...]
    build: Mapping[str, object]
    constants: Mapping[str, object]
    scheduled: Mapping[str, Schedule]
    build_arguments: tuple[str, ...] = ()

    @property
    def takes_unlabeled(self) -> bool:
        """Whether a loss that asks for `target` also wants unlabelled images."""
        return bool(getattr(self.target, "takes_unlabeled", False))

    @property
    def command(self) -> str | None:
        """The only command that can use it, as its module says in `COMMAND`; None for any."""
        return getattr(sys.modules.get(self.target.__module__), "COMMAND", None)


@dataclass(frozen=True)
class LossSpec:
    """A loss: `ce_weight * CE + sum of weight_i * term_i`.

    Attributes:
        node: its config node, as in a stage's key.
        teaches: stage that acts as the teacher, if a term asks for one.
        ce_weight: as a function of progress.
        strong: augmentation of the strong view; None where no term asks for one.
    """

    node: Mapping[str, object]
    teaches: str
    ce_weight: Schedule
    terms: tuple[TermSpec, ...]
    strong: Augment | None = None

    @property
    def signals(self) -> frozenset[str]:
        """Return all signals that the terms ask for."""
        return frozenset(name for term in self.terms for name in term.signals)

    @property
    def teacher(self) -> str | None:
        """Stage whose net is the teacher; None if no term needs one."""
        return self.teaches if any(name.endswith("_t") for name in self.signals) else None

    @property
    def uses_unlabeled(self) -> bool:
        """Whether a term uses unlabelled images: through a teacher, or by itself."""
        return self.teacher is not None or any(
            term.takes_unlabeled for term in self.terms if term.signals
        )

    @property
    def uses_labels(self) -> bool:
        """Whether the cross-entropy has a weight, or a term asks for the labels."""
        return self.node.get("ce_weight", 1.0) != 0 or "target" in self.signals

    @property
    def wants_stem(self) -> bool:
        """Whether a term also uses the stem before the first stage: its loss has a `stem`."""
        return any(getattr(term.target, "stem", False) for term in self.terms)


def read_loss(node: Mapping[str, object], where: str = "loss") -> LossSpec:
    """Read and check a config node `{ce_weight: W, terms: {NAME: {weight: W, loss: {...}}}}`.

    Raises:
        UserError: anything in it is wrong.
    """
    _check_keys(node, ("ce_weight", "terms", "teacher", "net", "strong"), where)
    ce_weight = make_schedule(node.get("ce_weight", 1.0), f"{where}.ce_weight", NOT_NEGATIVE)
    teaches = node.get("teacher", "teacher")
    if teaches not in ("teacher", "baseline"):
        raise UserError(f"{where}.teacher: found {teaches!r}, accepted are teacher, baseline")
    net = node.get("net")
    if net is not None and not isinstance(net, Mapping):
        raise UserError(f"{where}.net: found {net!r}, accepted is a node with its `_target_`")
    if not {"ce_weight", "terms"} & {*node}:
        raise UserError(f"{where}: it is empty; needed are terms, as in conf/loss/kd.yaml")
    terms = node.get("terms") or {}
    if not isinstance(terms, Mapping):
        raise UserError(f"{where}.terms: found {terms!r}, accepted is a mapping of names to terms")
    if "ce" in terms:
        raise UserError(
            f"{where}.terms.ce: that name is the cross-entropy's own, whose weight is "
            f"{where}.ce_weight"
        )
    read = tuple(_read_term(name, term, f"{where}.terms.{name}") for name, term in terms.items())
    strong = _read_strong(node.get("strong"), read, where)
    return LossSpec(node, str(teaches), ce_weight, read, strong)


def _read_strong(node: object, terms: Sequence[TermSpec], where: str) -> Augment | None:
    """Read the augmentation of the strong view, which is there just where a term asks for it."""
    asks = [term.name for term in terms if {*STRONG} & {*term.signals}]
    if not asks and node is None:
        return None
    if not asks or not isinstance(node, Mapping):
        wanted = f"the augmentation of the strong view that {asks[0]} asks for" if asks else "null"
        raise UserError(f"{where}.strong: found {node!r}, accepted is {wanted}")
    return make_augment({str(key): value for key, value in node.items()}, f"{where}.strong")


def _read_term(name: str, node: Mapping[str, object], where: str) -> TermSpec:
    """Read a term `{weight: W, loss: {_target_: ..., keywords of the loss}}`.

    Raises:
        UserError: unknown keyword, an input that training does not provide, or a number out of
            range.
    """
    _check_keys(node, ("weight", "loss"), where)
    weight = make_schedule(node.get("weight", 1.0), f"{where}.weight", NOT_NEGATIVE)
    at = f"{where}.loss"
    loss = node.get("loss") or {}
    target, keywords = resolve_target(loss, at)
    assert isinstance(loss, Mapping)
    path = str(loss["_target_"])
    step, build = _parameters(target)
    own = [
        *(key for key in build if key not in BUILD_ARGUMENTS),
        *(key for key in step if key not in SIGNALS),
    ]
    if unknown := [key for key in keywords if key not in own]:
        accepted = ", ".join(own) or "none"
        raise UserError(
            f"{at}.{unknown[0]}: no such parameter; accepted are "
            f"{accepted}{nearest(unknown[0], own)}"
        )
    moving = [key for key, value in keywords.items() if is_schedule(value, f"{at}.{key}")]
    scheduled = {key: _moves(key, keywords[key], at, key in step) for key in moving}
    constants = {key: value for key, value in keywords.items() if key not in moving}
    if "temperature" in constants:
        make_schedule(constants["temperature"], f"{at}.temperature", POSITIVE)
    learns = bool(build) or isinstance(target, type)
    for function in (target, target.forward) if learns else (target,):  # type: ignore[attr-defined]
        check_values(function, constants, at)
    for key in own:
        if key not in keywords and (build.get(key) or step[key]).default is inspect.Parameter.empty:
            raise UserError(
                f"{at}: {path} asks for {key!r}, which is neither set nor "
                f"among what training provides: {', '.join(SIGNALS)}{nearest(key, SIGNALS)}"
            )
    return TermSpec(
        name,
        at,
        path,
        target,
        weight,
        tuple(key for key in step if key in SIGNALS),
        {key: value for key, value in constants.items() if key in build},
        {key: value for key, value in constants.items() if key in step},
        scheduled,
        tuple(key for key in build if key in BUILD_ARGUMENTS),
    )


def _parameters(
    target: Callable[..., object],
) -> tuple[dict[str, inspect.Parameter], dict[str, inspect.Parameter]]:
    """Return a loss's parameters: those of each step, and those of its constructor if it learns."""
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        return dict(inspect.signature(target).parameters), {}
    step = dict(inspect.signature(target.forward).parameters)
    del step["self"]
    return step, dict(inspect.signature(target).parameters)


def _moves(key: str, value: object, at: str, of_step: bool) -> Schedule:
    """Return the schedule of a keyword."""
    if not of_step:
        raise UserError(
            f"{at}.{key}: is set once, when the loss is built, so it cannot be a schedule"
        )
    return make_schedule(value, f"{at}.{key}", POSITIVE if key == "temperature" else ANY)


def _check_keys(node: object, accepted: tuple[str, ...], where: str) -> None:
    if not isinstance(node, Mapping):
        raise UserError(
            f"{where}: found {node!r}, accepted is a mapping with the keys {', '.join(accepted)}"
        )
    for name in node:
        if name not in accepted:
            raise UserError(
                f"{where}.{name}: no such key; accepted are "
                f"{', '.join(accepted)}{nearest(str(name), accepted)}"
            )
