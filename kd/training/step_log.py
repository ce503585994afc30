"""Log of the training steps: losses, weights and learning rate."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import Metric


def is_logged(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the logger or the epoch's row takes the values of this step.

    Logging one value takes 0.3 ms, even where it is dropped afterwards.

    Args:
        trainer: Lightning's Trainer, before the optimiser's step.
        batch_idx: number of the batch in the epoch, from 0.
    """
    if batch_idx == 0 or trainer.is_last_batch:
        return True
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return (trainer.global_step + 1) % max(1, every) == 0


class StepLog(Callback):
    """Logs what `Distiller.training_step` returns, in the steps that are logged."""

    def __init__(self) -> None:
        self.logged = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Log the learning rate of the step, before a schedule moves it."""
        self.logged = is_logged(trainer, batch_idx)
        if self.logged:
            pl_module.log("lr", max(each["lr"] for each in trainer.optimizers[0].param_groups))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Log the parts of the loss, scalars, and the accuracy of the epoch so far, in [0, 1]."""
        if not self.logged:
            return
        for name, value in outputs["parts"].items():
            # Each rank has its own tensor and all log the mean
            spread = isinstance(value, Tensor)
            pl_module.log(f"train/{name}", value, prog_bar=name == "loss", sync_dist=spread)
        accuracy = pl_module.train_acc
        assert isinstance(accuracy, Metric)
        pl_module.log("train/acc", accuracy, on_step=False, on_epoch=True)
