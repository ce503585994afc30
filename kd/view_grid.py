"""A look at what the nets are shown: the first batch of views of each training, in TensorBoard."""

from typing import Any

import lightning.pytorch as L
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid

from kd.distiller import Distiller

IMAGES = 64
SIDE = 64  # pixels that a small image is enlarged to, about, to be seen at all


class ViewGrid(Callback):
    """Logs `data/views` once a training."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw the views again, which gives the same ones."""
        if trainer.global_step == 0 and batch_idx == 0 and isinstance(trainer.logger, TensorBoardLogger):
            assert isinstance(pl_module, Distiller)
            trainer.logger.experiment.add_image("data/views", grid(pl_module.view(batch)), 0)


def grid(x: Tensor) -> Tensor:
    """The first images of x [B, C, H, W] in [0, 1], eight in a row: float32 [3, height, width] in [0, 1]."""
    x = F.interpolate(x[:IMAGES].float().cpu(), scale_factor=max(1, SIDE // x.shape[3]), mode="nearest")
    picture: Tensor = make_grid(x)
    return picture
