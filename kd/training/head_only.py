"""Training a part of the net, or only the loss's parameters; the rest stays bit-identical."""

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

from kd.nets.batch_norms import freeze_norms, still_norms
from kd.nets.head import freeze_body, still_body
from kd.shape import Shape


class HeadOnly(Callback):
    """Freezes the body before the optimiser is built, and keeps it in evaluation mode."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze all parameters except the last layer's."""
        freeze_body(pl_module.net, self.shape)  # type: ignore[arg-type]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Undo the train mode that Lightning has set; after validation it restores what it
        found.
        """
        still_body(pl_module.net)  # type: ignore[arg-type]


class FrozenNorms(Callback):
    """Freezes the batch norms, and keeps them in evaluation mode while the rest is trained."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze their weights and biases."""
        freeze_norms(pl_module.net)  # type: ignore[arg-type]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Undo the train mode that Lightning has set."""
        still_norms(pl_module.net)  # type: ignore[arg-type]


class LossOnly(Callback):
    """Freezes the net in evaluation mode while the loss's own parameters are trained."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze the whole net."""
        pl_module.net.requires_grad_(False)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Undo the train mode that Lightning has set."""
        pl_module.net.eval()  # type: ignore[union-attr]
