"""Detection of divergence: NaN or infinite losses stop the training."""

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from kd.errors import DivergedError

WHAT_HELPS = "a lower learning rate or gradient_clip=1 helps most, then trainer.precision=32-true"


def finite(parts: Mapping[str, Any], trainer: L.Trainer, look: bool = True) -> Tensor:
    """Return the loss of a step, after a check.

    Args:
        parts: output of the objective: `loss`, and `loss_NAME` of each term; scalars.
        trainer: Lightning's Trainer; knows step, epoch and learning rate.
        look: whether to check on a GPU, which must then synchronise; a CPU always checks.

    Raises:
        DivergedError: the loss is infinite or NaN; names the terms that are.
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
    raise DivergedError(
        f"the loss is {float(loss.detach())} at step {trainer.global_step + 1}, in epoch "
        f"{trainer.current_epoch + 1}: {', '.join(bad) or 'all its terms together'}; learning "
        f"rate {trainer.optimizers[0].param_groups[0]['lr']:.3g}"
    )


def check_row(row: Mapping[str, float]) -> None:
    """Check an epoch's metrics before its weights are kept.

    Raises:
        DivergedError: a loss is infinite or NaN, in the last step or in an unchecked one.
    """
    for name in ("train/loss", "val/loss"):
        if not math.isfinite(row.get(name, 0.0)):
            raise DivergedError(
                f"{name} is {row[name]} after epoch {int(row['epoch']) + 1}; learning rate "
                f"{row['lr']:.3g}"
            )
