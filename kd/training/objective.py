"""The objective: `ce_weight * CE + sum of weight_i * term_i`, one formula for every method.

Each number in it, the weights and the numbers that a loss takes by keyword, is constant or a schedule over the
progress of training.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.config.construct import construct
from kd.shape import Shape
from kd.training.loss_spec import LossSpec, TermSpec


class Term(nn.Module):
    """One summand: a loss, its weight, and the numbers and signals that it takes.

    Args:
        offered: what of `OFFERED` there is, for losses that hold a net or a layer of their own.
        unlabeled: whether there are images without a label. A loss that reads labels is not shown them, unless it has
            an attribute `takes_unlabeled` that is true.
    """

    def __init__(
        self,
        spec: TermSpec,
        offered: Mapping[str, Any],
        unlabeled: bool = False,
    ) -> None:
        super().__init__()
        self.name = spec.name
        self.signals = spec.signals
        self.skips = unlabeled and "target" in spec.signals and not spec.takes_unlabeled
        self.weight = spec.weight
        self.scheduled = dict(spec.scheduled)
        self.constants = dict(spec.constants)
        self.loss = spec.target
        if isinstance(spec.target, type):
            built = {
                key: construct(value, f"{spec.where}.{key}", **offered)
                if isinstance(value, Mapping) and "_target_" in value
                else value
                for key, value in spec.build.items()
            }
            self.loss = construct({"_target_": spec.path, **built}, spec.where, **offered)

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

    A module for the sake of losses that learn: what they own is trained and checkpointed, but no part of the net.

    Args:
        offered: what a loss that learns may ask for besides the shape when it is built, by name.
        class_weights, label_smoothing: of the cross-entropy; see `label_loss`.
    """

    def __init__(
        self,
        spec: LossSpec,
        shape: Shape,
        class_weights: tuple[float, ...] | None = None,
        label_smoothing: float = 0.0,
        offered: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        built = {
            "num_classes": shape.num_classes,
            "in_channels": shape.channels,
            "image_size": shape.image_size,
        }
        built |= offered or {}
        labels = (offered or {}).get("labels")
        unlabeled = labels is not None and bool((labels < 0).any())
        self.class_weights, self.label_smoothing = class_weights, label_smoothing
        self.ce_weight = spec.ce_weight
        self.terms = nn.ModuleList(Term(term, built, unlabeled) for term in spec.terms)

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
                "loss_ce": label_loss(
                    full["logits_s"], full["target"], self.class_weights, self.label_smoothing
                ),
                "weight_ce": self.ce_weight(signals["progress"]),
            }
            total = parts["weight_ce"] * parts["loss_ce"]
            for term in self.terms:
                parts |= term(full)
                total = total + parts[f"weight_{term.name}"] * parts[f"loss_{term.name}"]
        return {"loss": total, **parts}


def label_loss(
    logits: Tensor,
    target: Tensor,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy in nats, mean over the images that have a label; 0 where none has.

    Args:
        logits: [B, C], float32.
        target: classes, int64 [B], below 0 for no label; or probabilities [B, C], a row of zeros for no label.
        class_weights: what each class's cross-entropy is multiplied by. The mean is over images, not over weights, so
            an image counts the same in whatever batch it is.
        label_smoothing: in [0, 1): the share of a label that goes to all classes alike (Szegedy et al. 2016,
            "Rethinking the Inception Architecture", section 7).
    """
    weight = logits.new_tensor(class_weights) if class_weights else None
    options: Any = {"weight": weight, "label_smoothing": label_smoothing, "reduction": "none"}
    if target.ndim == 1:
        target, options["ignore_index"] = target.clamp(min=-1), -1
    labelled = labelled_in(target)
    # A row of zeros is smoothed too, so it is left out here.
    return (F.cross_entropy(logits, target, **options) * labelled).sum() / labelled.sum().clamp(
        min=1
    )


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
