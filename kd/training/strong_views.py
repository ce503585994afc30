"""A second, strongly augmented view of each training image, for losses that compare two views."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from kd.data.base import Batch, DataModule
from kd.data.epoch_views import EpochViews
from kd.data.views import Augment, normalize
from kd.errors import UserError
from kd.teachers.live_teacher import Teacher
from kd.training.distiller import Distiller
from kd.training.layout import to_layout


class StrongViews(Callback):
    """Gives the objective `strong_s` and `strong_t`, the logits [B, C] of both nets for a strong
    view of the batch's images.

    Args:
        views: makes them.
        teacher: gives its outputs for them; None where the loss does not ask.
    """

    def __init__(self, views: EpochViews, teacher: Teacher | None) -> None:
        self.views = views
        self.teacher = teacher
        self.batch: Batch | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the teacher to the student's device, and look at each call of the objective."""
        assert isinstance(pl_module, Distiller)
        if self.teacher is not None:
            self.teacher.to(pl_module.device)

        def add(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[dict[str, Any]]:
            return ({**inputs[0], **self.signals(pl_module)},)

        pl_module.objective.register_forward_pre_hook(add)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prepare the teacher."""
        if self.teacher is not None:
            self.teacher.prepare(self.views.number(pl_module.current_epoch))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the batch: pixels uint8 [B, C, H, W], labels, and numbers int64 [B]."""
        self.batch = batch

    def signals(self, distiller: Distiller) -> dict[str, Tensor]:
        """Ask both nets about the strong view of the batch; logits [B, C]."""
        assert self.batch is not None
        pixels, _, index = self.batch
        view = self.views.number(distiller.current_epoch)
        x = self.views.images(pixels, index, view)
        inputs = to_layout(normalize(x, *distiller.normalization), distiller.layout)
        found = {"strong_s": distiller.net(inputs)}
        if self.teacher is not None:
            found["strong_t"] = self.teacher(x, index, view).logits
        return found


def refuse_beside_strong(strong: Augment | None, data: DataModule) -> None:
    """Refuse what a second view of an image cannot have.

    Args:
        strong: augmentation of the strong view; None where a loss asks for none.

    Raises:
        UserError: a view mixes two images, or is a crop of the original.
    """
    if strong is None:
        return
    for where, augment in (("data.augment", data.augment), ("loss.strong", strong)):
        for key in ("resized_crop", "mixup", "cutmix"):
            if found := getattr(augment, key):
                raise UserError(
                    f"{where}.{key}: found {found}; a loss with two views of an image takes 0 "
                    "alone, as both are made from the image as it was read, with its own label"
                )
