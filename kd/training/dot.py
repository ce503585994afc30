"""Distillation-Oriented Trainer, DOT: SGD with a momentum each for labels and teacher."""

from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from kd.config.schema import Recipe
from kd.errors import UserError
from kd.training.devices import SHARDED, WHOLE
from kd.training.distiller import Distiller


class DOT(Optimizer):
    """SGD whose velocity of the teacher's gradient lasts longer than that of the labels'.

    Zhao et al. 2023, "DOT: A Distillation-Oriented Trainer" (ICCV), section 4:
    v_labels = (momentum - delta) v_labels + g_labels + weight_decay * p,
    v_teacher = (momentum + delta) v_teacher + g_teacher, p = p - lr (v_labels + v_teacher).
    A parameter that only one side moves has one velocity with `momentum`, as in the authors' code:
    it is torch's SGD. So is a training without a teacher.

    `TeacherGradients` hands over the teacher's part of each gradient.

    Args:
        params: groups, as for any optimiser.
        momentum, delta: 0 <= momentum - delta and momentum + delta < 1.
        weight_decay: >= 0.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        momentum: float = 0.9,
        delta: float = 0.075,
        weight_decay: float = 0.0005,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name}: found {value}, accepted is a number from 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: found {momentum}, accepted is a number from 0 to below 1")
        if not 0 <= delta <= momentum or momentum + delta >= 1:
            raise ValueError(
                f"delta: found {delta}, accepted is a number with momentum - delta and momentum + "
                "delta in [0, 1)"
            )
        defaults = {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.of_teacher: dict[Tensor, Tensor] = {}  # by parameter, of the step to come

    def add_teacher(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Add the teacher's part of some parameters' gradients, for the next step.

        Args:
            gradients: by the parameters that labels and teacher both move.
        """
        for p, gradient in gradients.items():
            known = self.of_teacher.get(p)
            self.of_teacher[p] = gradient if known is None else known + gradient

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, self.of_teacher.get(p), group)
        self.of_teacher = {}
        return loss

    def _move(
        self, p: Tensor, whole: Tensor, taught: Tensor | None, group: Mapping[str, float]
    ) -> None:
        apart = group["delta"] if taught is not None else 0.0
        own = (whole if taught is None else whole - taught).add(p, alpha=group["weight_decay"])
        moves = [self._velocity(p, "labels", own, group["momentum"] - apart)]
        if taught is not None:
            moves.append(self._velocity(p, "teacher", taught, group["momentum"] + apart))
        for move in moves:
            p.add_(move, alpha=-group["lr"])

    def _velocity(self, p: Tensor, name: str, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        found: Tensor = state[name].mul_(momentum).add_(gradient)
        return found


def keeps_momenta_apart(optim: Mapping[str, object]) -> bool:
    """Whether an optimiser's config node is that of `DOT`."""
    return optim.get("_target_") == f"{DOT.__module__}.{DOT.__name__}"


def refuse_beside_dot(
    recipe: Recipe, precision: str, trainer: Mapping[str, object], where: str
) -> None:
    """Refuse what does not go with two gradients, if a recipe's optimiser is `DOT`.

    Args:
        precision: of the stage, as resolved.
        trainer: the config's options of the Trainer.
        where: prefix of the recipe's keys.

    Raises:
        UserError: names the option.
    """
    if not keeps_momenta_apart(recipe.optim):
        return
    clip = recipe.gradient_clip
    strategy = str(trainer.get("strategy", "auto"))
    for key, found, wrong, accepted in (
        (f"{where}gradient_clip", clip, clip is not None, "null"),
        ("trainer.compile", True, trainer.get("compile"), "false"),
        ("trainer.precision", precision, precision == "16-mixed", "bf16-mixed, 32-true"),
        ("trainer.strategy", strategy, strategy.startswith(SHARDED), WHOLE),
    ):
        if wrong:
            raise UserError(
                f"{key}: found {found!r}; {where}optim=dot needs the gradients of labels and "
                f"teacher one by one; accepted with it: {accepted}"
            )


class TeacherGradients(Callback):
    """Computes the teacher's part of the gradients before each backward pass, for `DOT`.

    The teacher's part is that of all terms of the loss, the labels' that of its cross-entropy. It
    costs a further backward pass through the student.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the parts of each step's loss."""
        assert isinstance(pl_module, Distiller)
        pl_module.objective.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: dict[str, Any]) -> None:
        self.parts = output

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Hand over the gradients, means over all processes, before that of `loss`, a scalar."""
        assert isinstance(pl_module, Distiller)
        optimizer = trainer.optimizers[0]
        assert isinstance(optimizer, DOT)
        parts = self.parts
        self.parts = {}  # they would keep the graph alive
        of_labels = parts["weight_ce"] * parts["loss_ce"]
        of_terms = parts["loss"] - of_labels
        if not (len(pl_module.objective.terms) and parts["weight_ce"]):
            return
        shared = [p for p in pl_module.net.parameters() if p.requires_grad]
        found = torch.autograd.grad(
            of_terms / trainer.accumulate_grad_batches,
            shared,
            retain_graph=True,
            allow_unused=True,
        )
        optimizer.add_teacher(
            {
                p: trainer.strategy.reduce(gradient, reduce_op="mean")
                for p, gradient in zip(shared, found, strict=True)
                if gradient is not None
            }
        )
