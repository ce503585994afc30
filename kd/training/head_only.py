"""Training the last layer alone, or nothing of the net: the rest, batch-norm statistics too, stays bit for bit."""

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

from kd.nets.head import freeze_body, still_body
from kd.shape import Shape


class HeadOnly(Callback):
    """Freezes the body of the net before the optimiser is made, and keeps it in evaluation mode while it trains."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the gradient from all but the last layer."""
        freeze_body(pl_module.net, self.shape)  # type: ignore[arg-type]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has put all of it into train mode; after a validation it restores what it found."""
        still_body(pl_module.net)  # type: ignore[arg-type]


class LossOnly(Callback):
    """Leaves the net as it is, in evaluation mode, while what the loss learns itself is trained."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the gradient from the whole net."""
        pl_module.net.requires_grad_(False)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has put it into train mode."""
        pl_module.net.eval()  # type: ignore[union-attr]
