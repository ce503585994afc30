"""The objective: `ce_weight * CE + sum of weight_i * term_i`, one formula for every method.

Its numbers, weights and losses' keywords, are constants or schedules over training progress.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd.config.construct import construct
from kd.shape import Shape
from kd.training.label_loss import label_loss, label_mask
from kd.training.loss_spec import LossSpec, TermSpec


class Term(nn.Module):
    """One summand: a loss with its weight, numbers and signals.

    Args:
        build_arguments: available values of `BUILD_ARGUMENTS`, for losses with a net or layer of
            their own.
        unlabeled: whether there are unlabelled images. A loss that reads labels does not see them,
            unless its attribute `takes_unlabeled` is true.
    """

    def __init__(
        self,
        spec: TermSpec,
        build_arguments: Mapping[str, object],
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
                key: construct(value, f"{spec.where}.{key}", **build_arguments)
                if isinstance(value, Mapping) and "_target_" in value
                else value
                for key, value in spec.build.items()
            }
            self.loss = construct({"_target_": spec.path, **built}, spec.where, **build_arguments)

    def forward(self, signals: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the unweighted loss `loss_NAME`, its weight `weight_NAME`, and numbers to log.

        Args:
            signals: by name; see `SIGNALS`. Tensors [B, ...].
        """
        progress = signals["progress"]
        numbers: dict[str, object] = {
            name: schedule(progress) for name, schedule in self.scheduled.items()
        }
        given = {name: signals[name] for name in self.signals}
        if self.skips and not (labelled := label_mask(given["target"])).all():
            given = {name: _rows(each, labelled) for name, each in given.items()}
        value = (
            self.loss(**given, **self.constants, **numbers)
            if not self.skips or len(given["target"])
            else self._nothing(signals["logits_s"])
        )
        # A loss that learns puts numbers to log into `logged`, by name.
        numbers |= getattr(self.loss, "logged", {})
        softened = (
            {"temperature": self.constants["temperature"]}
            if "temperature" in self.constants
            else {}
        )
        numbers = softened | numbers  # log the temperature even if constant
        return {
            f"loss_{self.name}": value,
            f"weight_{self.name}": self.weight(progress),
            **{f"{self.name}_{name}": number for name, number in numbers.items()},
        }

    def _nothing(self, logits: Tensor) -> Tensor:
        """Return 0 with a gradient to all learned parameters, as DDP requires in each step."""
        return sum(
            (each.sum() * 0.0 for each in (logits, *self.parameters())), logits.new_zeros(())
        )


class Objective(nn.Module):
    """`ce_weight * CE + sum of weight_i * term_i`; for plain distillation ce_weight = 1 - alpha and
    weight = alpha.

    It is a module because losses may have parameters, which are trained and checkpointed beside the
    net.

    Args:
        build_arguments: constructor arguments for losses that learn, by name, besides the shape.
        of_labels: the cross-entropy, of logits and target; see `label_loss`.
    """

    def __init__(
        self,
        spec: LossSpec,
        shape: Shape,
        of_labels: Callable[[Tensor, Tensor], Tensor] = label_loss,
        build_arguments: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        built: dict[str, object] = {
            "num_classes": shape.num_classes,
            "in_channels": shape.channels,
            "image_size": shape.image_size,
        }
        built |= build_arguments or {}
        labels = (build_arguments or {}).get("labels")
        unlabeled = isinstance(labels, Tensor) and bool((labels < 0).any())
        self.of_labels = of_labels
        self.ce_weight = spec.ce_weight
        self.terms = nn.ModuleList(Term(term, built, unlabeled) for term in spec.terms)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term asks for a teacher's signal."""
        signals = (name for term in self.terms for name in term.signals)  # type: ignore[union-attr]
        return any(name.endswith("_t") for name in signals)

    def learned_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Select the losses' parameters from a state dict, named by term instead of number."""
        prefixes = {f"terms.{i}.loss.": f"{term.name}." for i, term in enumerate(self.terms)}
        return {
            ours + name.removeprefix(theirs): tensor
            for name, tensor in state.items()
            for theirs, ours in prefixes.items()
            if name.startswith(theirs)
        }

    def go_on_from(self, learned: Mapping[str, Tensor]) -> None:
        """Load parameters of an earlier stage where term name, tensor name and shape match."""
        own = self.learned_state(self.state_dict())
        with torch.no_grad():
            for name in own.keys() & learned.keys():
                if own[name].shape == learned[name].shape:
                    own[name].copy_(learned[name])

    def temperature(self, progress: float) -> float:
        """Return the temperature of the first term that has one; 1 without any."""
        for term in self.terms:
            constants: Any = term.constants
            scheduled: Any = term.scheduled
            if "temperature" in scheduled:
                return float(scheduled["temperature"](progress))
            if "temperature" in constants:
                return float(constants["temperature"])
        return 1.0

    def forward(self, signals: Mapping[str, Any]) -> dict[str, Any]:
        """Compute all parts of the loss by name, and their weighted sum as `loss`; scalars.

        Args:
            signals: by name, see `SIGNALS`; tensors [B, ...]. Half precision is converted to
                float32.

        Returns:
            `loss`; `loss_ce` and `loss_NAME` of each term, unweighted, float32; `weight_ce` and
            `weight_NAME`; `NAME_NUMBER` for each scheduled or learned number of a term, and for its
            temperature.
        """
        logits_s: Tensor = signals["logits_s"]
        with torch.autocast(logits_s.device.type, enabled=False):
            full = {name: _full(value) for name, value in signals.items()}
            parts: dict[str, Any] = {
                "loss_ce": self.of_labels(full["logits_s"], full["target"]),
                "weight_ce": self.ce_weight(signals["progress"]),
            }
            total = parts["weight_ce"] * parts["loss_ce"]
            for term in self.terms:
                parts |= term(full)
                total = total + parts[f"weight_{term.name}"] * parts[f"loss_{term.name}"]
        return {"loss": total, **parts}


def _rows(value: Any, chosen: Tensor) -> Any:
    """Select images of a signal; other values are returned unchanged."""
    if isinstance(value, list):
        return [_rows(each, chosen) for each in value]
    return value[chosen] if isinstance(value, Tensor) else value


def _full(value: Any) -> Any:
    if isinstance(value, list):
        return [_full(each) for each in value]
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
