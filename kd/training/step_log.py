"""Log of the training steps: losses, weights and learning rate."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor


def is_logged(trainer: Any, batch_idx: int) -> bool:
    """Whether the logger or the epoch's row takes the values of this step.

    Logging one value takes 0.3 ms, even where it is dropped afterwards.

    Args:
        trainer: Lightning's Trainer, before the optimiser's step.
        batch_idx: number of the batch in the epoch, from 0.
    """
    if batch_idx == 0 or trainer.is_last_batch:
        return True
    return bool((trainer.global_step + 1) % max(1, trainer.log_every_n_steps) == 0)


class StepLog(Callback):
    """Logs what `Distiller.training_step` returns, in the steps that are logged."""

    def __init__(self) -> None:
        self.logged = False

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Log the learning rate of the step, before a schedule moves it."""
        self.logged = is_logged(trainer, args[1])
        if self.logged:
            pl_module.log("lr", max(each["lr"] for each in trainer.optimizers[0].param_groups))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, *args: Any
    ) -> None:
        """Log the parts of the loss, scalars, and the accuracy of the epoch so far, in [0, 1]."""
        if not self.logged:
            return
        parts: Mapping[str, Any] = outputs["parts"]
        for name, value in parts.items():
            # Each rank has its own tensor and all log the mean
            spread = isinstance(value, Tensor)
            pl_module.log(f"train/{name}", value, prog_bar=name == "loss", sync_dist=spread)
        pl_module.log("train/acc", pl_module.train_acc, on_step=False, on_epoch=True)
