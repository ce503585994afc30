"""The only LightningModule: trains a net on an objective, with or without a teacher."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from kd.data.base import Batch, Images
from kd.data.views import Augment, make_views, mixed_target, normalize, to_unit
from kd.nets.hooks import FeatureHooks, as_signals
from kd.teachers.feature_teacher import FeatureTeacher
from kd.teachers.live_teacher import Teacher
from kd.training.finite import finite
from kd.training.layout import layout_of, to_layout
from kd.training.memory import keep_memory
from kd.training.objective import Objective, label_mask


class Distiller(L.LightningModule):
    """Trains `net`; the teacher stays outside the module tree, hence outside mode, optimiser and checkpoint.

    Args:
        net: the net to train.
        objective: the loss; what it learns itself is trained and checkpointed beside the net.
        configure: makes the optimiser, and its schedule by the step, from the net, the number of steps to come, and
            `extra`, what the objective learns itself.
        augment: what may happen to a training image.
        normalization: mean and standard deviation per channel, for pixels in [0, 1].
        seed: seeds the views, and whatever a net draws by itself (dropout), anew in each epoch.
        views: None for a new view in each epoch, V to cycle through V.
        teacher: answers for the views of a batch; None where the objective needs none.
        reference: classes that a teacher chose for the validation images, int64 [number of them]; for
            `val/agreement` alone.
        taps: what the objective wants to see of the net besides its logits; None where that is nothing.
        pool: the images that the second picture of a mixed view comes from; None where views do not mix.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        configure: Callable[..., tuple[Optimizer, Any]],
        *,
        augment: Augment,
        normalization: tuple[tuple[float, ...], tuple[float, ...]],
        seed: int,
        views: int | None = None,
        teacher: Teacher | None = None,
        reference: Tensor | None = None,
        taps: FeatureHooks | None = None,
        pool: Images | None = None,
    ) -> None:
        super().__init__()
        self.net, self.objective = net, objective
        self.configure, self.teacher, self.taps = configure, teacher, taps
        self.augment, self.normalization = augment, normalization
        self.seed, self.views, self.layout = seed, views, torch.channels_last
        self.reference, self.pool = reference, pool
        self.train_acc = MeanMetric()
        self.val_loss, self.val_acc, self.val_agreement = MeanMetric(), MeanMetric(), MeanMetric()

    def on_fit_start(self) -> None:
        """Bring the teacher to where the student is: Lightning does not know of it."""
        keep_memory()  # here, as each process of a distributed training comes here
        self.layout = layout_of(self.net, self.trainer.precision, self.device)
        self.to(memory_format=self.layout)
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Seed what a net draws by itself, so that a run resumed at this epoch draws the same; prepare the teacher."""
        if self.teacher is not None:
            self.teacher.prepare(self._which()["view"])
        torch.manual_seed((self.seed * 1_000_003 + self.current_epoch + 1) % 2**63)

    def view(self, batch: Batch) -> Tensor:
        """This epoch's views of a batch: float32 [B, C, H, W] in [0, 1]."""
        return make_views(batch[0], batch[2], augment=self.augment, pool=self.pool, **self._which())

    def target(self, batch: Batch, classes: int) -> Tensor:
        """The labels of those views: int64 [B], -1 for none; of mixed views float32 [B, classes], zeros for none."""
        (*_, size), target, index = batch[0].shape, batch[1], batch[2]
        if self.pool is None:
            return target
        return mixed_target(
            target, index, classes, size, augment=self.augment, pool=self.pool, **self._which()
        )

    def _which(self) -> dict[str, int]:
        epoch = self.current_epoch
        return {"seed": self.seed, "view": epoch if self.views is None else epoch % self.views}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch of views, both nets' logits, the objective; returns the loss, a scalar."""
        x = self.view(batch).contiguous(memory_format=torch.channels_last)
        normalized = to_layout(normalize(x, *self.normalization), self.layout)
        logits, seen = self.taps(self.net, normalized) if self.taps else (self.net(normalized), {})
        target = self.target(batch, logits.shape[1])
        signals: dict[str, Any] = {
            "logits_s": logits,
            "target": target,
            "index": batch[2],
            "x": normalized,
        }
        signals |= {
            "epoch": self.current_epoch,
            "progress": self.trainer.global_step / self.steps,
            **as_signals(seen, "s"),
        }
        if isinstance(self.teacher, FeatureTeacher):
            signals |= self.teacher.look(x)
        elif self.objective.needs_teacher:
            assert self.teacher is not None
            signals["logits_t"] = self.teacher(x, batch[2], self._which()["view"])
        parts = self.objective(signals)
        self.train_acc.update(*accuracy(logits, target))
        if written := self._is_written(batch_idx):
            for name, value in parts.items():
                spread = isinstance(value, Tensor)  # each rank has its own, and all log the mean
                self.log(f"train/{name}", value, prog_bar=name == "loss", sync_dist=spread)
            self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
            self.log("lr", max(each["lr"] for each in self.trainer.optimizers[0].param_groups))
        return finite(parts, self.trainer, look=written)

    def _is_written(self, batch_idx: int) -> bool:
        """Whether the logger or the epoch's row takes this step's values; `log` costs 0.3 ms for each, taken or not."""
        t: Any = self.trainer  # the type checker does not see its `log_every_n_steps`
        return (
            batch_idx == 0
            or t.is_last_batch
            or (t.global_step + 1) % max(1, t.log_every_n_steps) == 0
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Cross-entropy, accuracy and agreement with the reference, averaged over all images exactly."""
        pixels, target, index = batch
        logits = self.net(normalize(to_unit(pixels), *self.normalization)).float()
        chosen = logits.argmax(1)
        self.val_loss(F.cross_entropy(logits, target), len(target))
        self.val_acc((chosen == target).float().mean(), len(target))
        self.log("val/loss", self.val_loss)
        self.log("val/acc", self.val_acc, prog_bar=True)
        if self.reference is not None:
            agrees = chosen == self.reference.to(self.device)[index]
            self.val_agreement(agrees.float().mean(), len(target))
            self.log("val/agreement", self.val_agreement)

    def configure_optimizers(self) -> Any:
        """The optimiser, and its schedule by the step."""
        self.steps = max(1, int(self.trainer.estimated_stepping_batches))
        extra = list(self.objective.parameters())
        optimizer, schedule = self.configure(self.net, self.steps, extra=extra)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def accuracy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the labelled images that are told right, mixed ones by their larger part, and how many are labelled."""
    labelled = label_mask(target)
    dominant = target if target.ndim == 1 else target.argmax(1)
    count = labelled.sum()
    return ((logits.argmax(1) == dominant) & labelled).sum() / count.clamp(min=1), count.float()
