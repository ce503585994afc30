"""Where numbers go bad: a loss that is none any more ends the training there."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kd.errors import Diverged

WHAT_HELPS = "a lower learning rate or gradient_clip=1 helps most, then trainer.precision=32-true"


def finite(parts: Mapping[str, Any], trainer: Any, look: bool = True) -> Tensor:
    """The loss of a step.

    Args:
        parts: what an objective gives: `loss`, and `loss_NAME` of each of its terms.
        trainer: Lightning's; knows the step, the epoch and the learning rate.
        look: whether to look on a device where that means to wait for it; on a CPU it costs nothing and is done always.

    Raises:
        Diverged: the loss is infinite or not a number; names the terms that are.
    """
    loss: Tensor = parts["loss"]
    if not (look or loss.device.type == "cpu") or bool(torch.isfinite(loss.detach())):
        return loss
    terms = {
        name.removeprefix("loss_"): float(parts[name].detach())
        for name in parts
        if name.startswith("loss_")
    }
    bad = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
    raise Diverged(
        f"the loss is {float(loss.detach())} at step {trainer.global_step + 1}, in epoch {trainer.current_epoch + 1}: "
        f"{', '.join(bad) or 'all its terms together'}; learning rate {trainer.optimizers[0].param_groups[0]['lr']:.3g}"
    )


def check_row(row: Mapping[str, float]) -> None:
    """Look at an epoch's metrics, before its weights are kept.

    Raises:
        Diverged: a loss among them is infinite or not a number, by its last step or one that was not looked at.
    """
    for name in ("train/loss", "val/loss"):
        if not math.isfinite(row.get(name, 0.0)):
            raise Diverged(
                f"{name} is {row[name]} after epoch {int(row['epoch']) + 1}; learning rate {row['lr']:.3g}"
            )
