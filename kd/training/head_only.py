"""Training the last layer alone, or nothing of the net: the rest, batch-norm statistics too, stays bit for bit."""

from functools import partial

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

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


def still_average(decay: float) -> WeightAveraging:
    """Averaged weights by the step, as Lightning's `EMAWeightAveraging`, but exact for those that do not move.

    There `decay * a + (1 - decay) * a` is not quite `a`, and the difference would add up over the steps.
    """
    return WeightAveraging(avg_fn=partial(_toward, decay=decay))


def _toward(average: Tensor, current: Tensor, steps: object, decay: float) -> Tensor:
    return average + (1 - decay) * (current - average)
