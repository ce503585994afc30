"""The objective: `ce_weight * CE + sum of weight_i * term_i`, one formula for every method.

Each number in it, the weights and the numbers that a loss takes by keyword, is constant or a schedule over the
progress of training.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.config.construct import check_values, construct, resolve_target
from kd.config.schedules import ANY, NOT_NEGATIVE, POSITIVE, is_schedule, make_schedule
from kd.errors import UserError, nearest
from kd.shape import Shape

# What a loss may ask for by parameter name. Shapes: logits [B, C]; target int64 [B], or soft labels [B, C] whose rows
# sum to 1; index [B]; x, the student's input, [B, channels, H, W]; epoch, an int from 0; progress in [0, 1]. Of the
# student's net and of the teacher's: feats, a list of tensors [B, ...], one for each tap; preacts, the same before each
# tap's last activation; pooled, what the last linear layer gets, [B, D]; head, that layer.
FEATURES = (
    "feats_s",
    "feats_t",
    "preacts_s",
    "preacts_t",
    "pooled_s",
    "pooled_t",
    "head_s",
    "head_t",
)
SIGNALS = ("logits_s", "logits_t", "target", "index", "x", "epoch", "progress", *FEATURES)

# What a loss that is a module may ask for when it is built: of the taps the shapes of one image, of the pooled
# embeddings the width, and the labels of all training images, int64 [N], -1 for none.
OFFERED = (
    "num_classes",
    "in_channels",
    "image_size",
    "shapes_s",
    "shapes_t",
    "width_s",
    "width_t",
    "labels",
)


class Request(NamedTuple):
    """What a term's config says, checked against the signature of its loss, before anything is built.

    Attributes:
        target: the loss function, or the class of a loss that learns.
        signals: the inputs that it asks for.
        build: keywords for the class.
        call: keywords for each step, constants and schedules.
    """

    target: Callable[..., Any]
    signals: tuple[str, ...]
    build: dict[str, Any]
    call: dict[str, Any]


def read_term(node: Mapping[str, Any], where: str) -> Request:
    """Check a term `{weight: W, loss: {_target_: ..., keywords of the loss}}` of the config.

    Raises:
        UserError: for a keyword that the loss does not have, an input that nobody provides, or a number out of range.
    """
    _check_keys(node, ("weight", "loss"), where)
    make_schedule(node.get("weight", 1.0), f"{where}.weight", NOT_NEGATIVE)
    target, keywords = resolve_target(node.get("loss") or {}, f"{where}.loss")
    learns = isinstance(target, type) and issubclass(target, nn.Module)
    step = dict(inspect.signature(target.forward if learns else target).parameters)  # type: ignore[attr-defined]
    made = dict(inspect.signature(target).parameters) if learns else {}
    if learns:
        del step["self"]
    own = [
        *(name for name in made if name not in OFFERED),
        *(name for name in step if name not in SIGNALS),
    ]
    for name, value in keywords.items():
        key = f"{where}.loss.{name}"
        if name not in own:
            accepted = ", ".join(own) or "none"
            raise UserError(
                f"{key}: no such parameter; accepted are {accepted}{nearest(name, own)}"
            )
        if is_schedule(value, key) and name not in step:
            raise UserError(
                f"{key}: is set once, when the loss is built, so it cannot be a schedule"
            )
        if is_schedule(value, key) or name == "temperature":
            make_schedule(value, key, POSITIVE if name == "temperature" else ANY)
    numbers = {
        name: value
        for name, value in keywords.items()
        if not is_schedule(value, f"{where}.loss.{name}")
    }
    for function in (target, target.forward) if learns else (target,):  # type: ignore[attr-defined]
        check_values(function, numbers, f"{where}.loss")
    for name in own:
        if (
            name not in keywords
            and (made.get(name) or step[name]).default is inspect.Parameter.empty
        ):
            raise UserError(
                f"{where}.loss: {node['loss']['_target_']} asks for {name!r}, which is neither set nor among what "
                f"training provides: {', '.join(SIGNALS)}{nearest(name, SIGNALS)}"
            )
    return Request(
        target,
        tuple(name for name in step if name in SIGNALS),
        {name: value for name, value in keywords.items() if name in made},
        {name: value for name, value in keywords.items() if name in step},
    )


def read_terms(node: Mapping[str, Any], where: str = "loss") -> dict[str, Request]:
    """Check the objective's whole config node, and read its terms by name.

    Raises:
        UserError: for whatever is wrong in it.
    """
    _check_keys(node, ("ce_weight", "terms", "teacher", "net", "command"), where)
    make_schedule(node.get("ce_weight", 1.0), f"{where}.ce_weight", NOT_NEGATIVE)
    if node.get("teacher", "teacher") not in ("teacher", "baseline"):
        raise UserError(
            f"{where}.teacher: found {node['teacher']!r}, accepted are teacher, baseline"
        )
    terms = node.get("terms") or {}
    if not isinstance(terms, Mapping):
        raise UserError(f"{where}.terms: found {terms!r}, accepted is a mapping of names to terms")
    if "ce" in terms:
        raise UserError(
            f"{where}.terms.ce: that name is the cross-entropy's own, whose weight is {where}.ce_weight"
        )
    return {name: read_term(term, f"{where}.terms.{name}") for name, term in terms.items()}


def teacher_stage(node: Mapping[str, Any]) -> str | None:
    """The stage whose net answers as the teacher: `teacher`, or what the node says; None where no loss asks for it."""
    asked = any(name.endswith("_t") for name in signals_of(node))
    return str(node.get("teacher", "teacher")) if asked else None


def hears_of_unlabeled(node: Mapping[str, Any]) -> bool:
    """Whether a term tells something of an image without a label: one with a teacher, or one that says that it does."""
    terms = read_terms(node).values()
    return any(
        name.endswith("_t") or takes_unlabeled(term.target)
        for term in terms
        for name in term.signals
    )


def takes_unlabeled(loss: Any) -> bool:
    """Whether a loss that asks for `target` wants the images without a label too."""
    return bool(getattr(loss, "takes_unlabeled", False))


def signals_of(node: Mapping[str, Any]) -> set[str]:
    """All that the terms of an objective's config node ask for."""
    return {name for term in read_terms(node).values() for name in term.signals}


def wants_stem(node: Mapping[str, Any]) -> bool:
    """Whether a loss looks at the layers before the nets' first stage too: it says so in an attribute `stem`."""
    return any(getattr(term.target, "stem", False) for term in read_terms(node).values())


class Term(nn.Module):
    """One summand: a loss, its weight, and the numbers and signals that it takes.

    Args:
        offered: what of `OFFERED` there is, for losses that hold a net or a layer of their own.
        unlabeled: whether there are images without a label. A loss that reads labels is not shown them, unless it has
            an attribute `takes_unlabeled` that is true.
    """

    def __init__(
        self,
        name: str,
        node: Mapping[str, Any],
        where: str,
        offered: Mapping[str, Any],
        unlabeled: bool = False,
    ) -> None:
        super().__init__()
        request = read_term(node, where)
        self.name, self.signals = name, request.signals
        self.skips = (
            unlabeled and "target" in request.signals and not takes_unlabeled(request.target)
        )
        self.weight = make_schedule(node.get("weight", 1.0), f"{where}.weight", NOT_NEGATIVE)
        self.scheduled = {
            k: make_schedule(v, f"{where}.loss.{k}")
            for k, v in request.call.items()
            if is_schedule(v)
        }
        self.constants = {k: v for k, v in request.call.items() if k not in self.scheduled}
        self.loss = request.target
        if isinstance(request.target, type):
            built = {
                k: construct(v, f"{where}.loss.{k}", **offered)
                if isinstance(v, Mapping) and "_target_" in v
                else v
                for k, v in request.build.items()
            }
            node = {"_target_": node["loss"]["_target_"], **built}
            self.loss = construct(node, f"{where}.loss", **offered)

    def forward(self, signals: Mapping[str, Any]) -> dict[str, Any]:
        """The loss as `loss_NAME`, unweighted; its weight as `weight_NAME`; and what else moves, for the log."""
        progress = signals["progress"]
        numbers = {name: schedule(progress) for name, schedule in self.scheduled.items()}
        given = {name: signals[name] for name in self.signals}
        if self.skips and not (labelled := labelled_in(given["target"])).all():
            given = {name: _rows(each, labelled) for name, each in given.items()}
        value = (
            self.loss(**given, **self.constants, **numbers)
            if not self.skips or len(given["target"])
            else self._nothing(signals["logits_s"])
        )
        # A loss that learns keeps in `logged` what it wants to be seen, by name.
        numbers |= getattr(self.loss, "logged", {})
        softened = (
            {"temperature": self.constants["temperature"]}
            if "temperature" in self.constants
            else {}
        )
        numbers = softened | numbers  # seen even where it does not move, next to those that do
        return {
            f"loss_{self.name}": value,
            f"weight_{self.name}": self.weight(progress),
            **{f"{self.name}_{name}": number for name, number in numbers.items()},
        }

    def _nothing(self, logits: Tensor) -> Tensor:
        """0, of which all that learns has a gradient, as DDP wants it in each step."""
        return sum(
            (each.sum() * 0.0 for each in (logits, *self.parameters())), logits.new_zeros(())
        )


class Objective(nn.Module):
    """`ce_weight * CE + sum of weight_i * term_i`; for plain distillation ce_weight = 1 - alpha and weight = alpha.

    Built from a config node `{ce_weight: W, terms: {NAME: {weight: W, loss: {...}}}}`, as the files in `conf/loss`.
    A module for the sake of losses that learn: what they own is trained and checkpointed, but no part of the net.

    Args:
        offered: what a loss that learns may ask for besides the shape when it is built, by name.
    """

    def __init__(
        self,
        node: Mapping[str, Any],
        shape: Shape,
        where: str = "loss",
        class_weights: tuple[float, ...] | None = None,
        offered: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        names = read_terms(node, where)
        built = {
            "num_classes": shape.num_classes,
            "in_channels": shape.channels,
            "image_size": shape.image_size,
        }
        built |= offered or {}
        labels = (offered or {}).get("labels")
        unlabeled = labels is not None and bool((labels < 0).any())
        self.class_weights = class_weights
        self.ce_weight = make_schedule(
            node.get("ce_weight", 1.0), f"{where}.ce_weight", NOT_NEGATIVE
        )
        self.terms = nn.ModuleList(
            Term(name, node["terms"][name], f"{where}.terms.{name}", built, unlabeled)
            for name in names
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term asks for something of the teacher's."""
        return any(name.endswith("_t") for term in self.terms for name in term.signals)  # type: ignore[union-attr]

    def learned(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the losses have learned, of a state dict of this objective; under the term's name, not its number."""
        prefixes = {f"terms.{i}.loss.": f"{term.name}." for i, term in enumerate(self.terms)}
        return {
            ours + name.removeprefix(theirs): tensor
            for name, tensor in state.items()
            for theirs, ours in prefixes.items()
            if name.startswith(theirs)
        }

    def go_on_from(self, learned: Mapping[str, Tensor]) -> None:
        """Take over what an earlier stage learned, where a term of the same name has the same tensor."""
        own = self.learned(self.state_dict())
        with torch.no_grad():
            for name in own.keys() & learned.keys():
                if own[name].shape == learned[name].shape:
                    own[name].copy_(learned[name])

    def temperature(self, progress: float) -> float:
        """What the teacher's answers are softened by: the temperature of the first term with one; 1 without any."""
        for term in self.terms:
            constants: Any = term.constants
            scheduled: Any = term.scheduled
            if "temperature" in scheduled:
                return float(scheduled["temperature"](progress))
            if "temperature" in constants:
                return float(constants["temperature"])
        return 1.0

    def forward(self, signals: Mapping[str, Any]) -> dict[str, Any]:
        """All parts of the loss by name, and their weighted sum as `loss`; scalars.

        Args:
            signals: what `SIGNALS` names; tensors may come in half precision and are computed on in float32.

        Returns:
            `loss`; `loss_ce` and `loss_NAME` of each term, unweighted, float32; `weight_ce` and `weight_NAME`; and
            `NAME_NUMBER` for each number of a term that is scheduled or learned, and for its temperature.
        """
        logits_s: Tensor = signals["logits_s"]
        with torch.autocast(logits_s.device.type, enabled=False):
            full = {name: _full(value) for name, value in signals.items()}
            parts: dict[str, Any] = {
                "loss_ce": label_loss(full["logits_s"], full["target"], self.class_weights),
                "weight_ce": self.ce_weight(signals["progress"]),
            }
            total = parts["weight_ce"] * parts["loss_ce"]
            for term in self.terms:
                parts |= term(full)
                total = total + parts[f"weight_{term.name}"] * parts[f"loss_{term.name}"]
        return {"loss": total, **parts}


def label_loss(
    logits: Tensor, target: Tensor, class_weights: tuple[float, ...] | None = None
) -> Tensor:
    """Cross-entropy in nats, mean over the images that have a label; 0 where none has.

    Args:
        logits: [B, C], float32.
        target: classes, int64 [B], below 0 for no label; or probabilities [B, C], a row of zeros for no label.
        class_weights: what each class's cross-entropy is multiplied by. The mean is over images, not over weights, so
            an image counts the same in whatever batch it is.
    """
    weight = logits.new_tensor(class_weights) if class_weights else None
    options: Any = {"weight": weight, "reduction": "sum"} | (
        {"ignore_index": -1} if target.ndim == 1 else {}
    )
    return F.cross_entropy(logits, target, **options) / labelled_in(target).sum().clamp(min=1)


def labelled_in(target: Tensor) -> Tensor:
    """Which images of a batch have a label: bool [B].

    Args:
        target: classes, int64 [B], below 0 for no label; or probabilities [B, C], a row of zeros for no label.
    """
    return target >= 0 if target.ndim == 1 else target.sum(1) > 0


def _rows(value: Any, chosen: Tensor) -> Any:
    """The chosen images of a signal; one that is not of images stays as it is."""
    if isinstance(value, list):
        return [_rows(each, chosen) for each in value]
    return value[chosen] if isinstance(value, Tensor) else value


def _full(value: Any) -> Any:
    if isinstance(value, list):
        return [_full(each) for each in value]
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _check_keys(node: Any, accepted: tuple[str, ...], where: str) -> None:
    if not isinstance(node, Mapping):
        raise UserError(
            f"{where}: found {node!r}, accepted is a mapping with the keys {', '.join(accepted)}"
        )
    for name in node:
        if name not in accepted:
            raise UserError(
                f"{where}.{name}: no such key; accepted are {', '.join(accepted)}{nearest(str(name), accepted)}"
            )
