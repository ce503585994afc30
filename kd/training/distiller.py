"""The only LightningModule: trains a net on an objective, with or without a teacher."""

from collections.abc import Callable

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from kd.data.base import Batch
from kd.data.epoch_views import EpochViews
from kd.data.views import normalize, to_unit
from kd.log import console
from kd.measure.metrics import is_right
from kd.nets.hooks import FeatureHooks, NetOutput, as_signals
from kd.teachers.live_teacher import Teacher
from kd.training.finite import finite
from kd.training.label_loss import accuracy, is_multilabel, label_loss
from kd.training.layout import choose_layout, to_layout
from kd.training.mean_average_precision import MeanAveragePrecision
from kd.training.memory import keep_memory
from kd.training.objective import Objective
from kd.training.step_log import is_logged


class Distiller(L.LightningModule):
    """Trains a net. The teacher is no submodule, so modes, optimiser and checkpoints leave it out.

    Args:
        net: the net to train.
        objective: the loss; its own parameters are trained and checkpointed beside the net.
        configure: makes the optimiser and its schedule by the step, from the net, the number of
            steps, and `extra`, the objective's parameters.
        views: makes the views of training images, and their labels.
        normalization: mean and standard deviation per channel, for pixels in [0, 1].
        seed: seeds what a net draws by itself (dropout), anew in each epoch.
        teacher: gives the outputs the objective asks for; None where it asks for none.
        reference: classes chosen by a teacher for the validation images, int64 [their number], for
            `val/agreement`.
        hooks: record the features that the objective asks for; None where it asks for none.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        configure: Callable[..., tuple[Optimizer, LRScheduler]],
        *,
        views: EpochViews,
        normalization: tuple[tuple[float, ...], tuple[float, ...]],
        seed: int,
        teacher: Teacher | None = None,
        reference: Tensor | None = None,
        hooks: FeatureHooks | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.objective = objective
        self.configure = configure
        self.views = views
        self.normalization = normalization
        self.seed = seed
        self.teacher = teacher
        self.reference = reference
        self.hooks = hooks
        self.dimensions = {each: each.ndim for each in self.parameters()}  # before FSDP shards them
        self.layout = torch.channels_last
        self.train_acc = MeanMetric()
        self.val_loss = MeanMetric()
        self.val_acc = MeanMetric()
        self.val_map = MeanAveragePrecision()
        self.val_agreement = MeanMetric()

    def setup(self, stage: str) -> None:
        """Choose the memory layout before DDP wraps the net, else its first gradients are wrong."""
        self.layout = choose_layout(self, self.trainer)

    def on_fit_start(self) -> None:
        """Move the teacher to the student's device, as Lightning does not know it."""
        console.quiet = not self.trainer.is_global_zero
        keep_memory()  # here, because each process of a distributed training comes here
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Prepare the teacher. Seed the net's own draws, so that a resumed run repeats them."""
        if self.teacher is not None:
            self.teacher.prepare(self.views.number(self.current_epoch))
        own = self.global_rank * 2**40  # each rank has other images, which want other draws
        torch.manual_seed((self.seed * 1_000_003 + self.current_epoch + 1 + own) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, object]:
        """Distil one batch; returns the `loss`, a scalar, and all its `parts` for `StepLog`."""
        pixels, labels, index = batch
        view = self.views.number(self.current_epoch)
        x = self.views.images(pixels, index, view)
        inputs = to_layout(normalize(x, *self.normalization), self.layout)
        student = self.student(inputs)
        teacher = self.teacher(x, index, view) if self.teacher is not None else None
        size = x.shape[2], x.shape[3]
        target = self.views.targets(labels, index, view, student.logits.shape[1], size)
        parts = self.objective(
            {
                **as_signals(student, "s"),
                **as_signals(teacher, "t"),
                "target": target,
                "index": self.views.positions(index),
                "x": inputs,
                "epoch": self.current_epoch,
                "progress": self.trainer.global_step / self.steps,
            }
        )
        self.train_acc.update(*accuracy(student.logits, target))
        loss = finite(parts, self.trainer, look=is_logged(self.trainer, batch_idx))
        return {"loss": loss, "parts": parts}

    def student(self, inputs: Tensor) -> NetOutput:
        """Compute logits, and features where the objective asks for them.

        Args:
            inputs: normalised images, float32 [B, C, H, W].
        """
        return self.hooks(self.net, inputs) if self.hooks else NetOutput(self.net(inputs))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log cross-entropy, accuracy and agreement with the reference, exact over all images."""
        pixels, target, index = batch
        logits = self.net(normalize(to_unit(pixels), *self.normalization)).float()
        self.val_loss(label_loss(logits, target), len(target))
        self.val_acc(is_right(logits, target).float().mean(), len(target))
        self.log("val/loss", self.val_loss)
        self.log("val/acc", self.val_acc, prog_bar=True)
        if is_multilabel(target):
            self.val_map.update(logits, target)
            self.log("val/map", self.val_map)
        if self.reference is not None:
            agrees = logits.argmax(1) == self.reference.to(self.device)[index]
            self.val_agreement(agrees.float().mean(), len(target))
            self.log("val/agreement", self.val_agreement)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make the optimiser, and its schedule by the step."""
        self.steps = max(1, int(self.trainer.estimated_stepping_batches))
        known = {"extra": list(self.objective.parameters()), "dimensions": self.dimensions}
        optimizer, schedule = self.configure(self.net, self.steps, **known)
        by_step: LRSchedulerConfigType = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": by_step}
