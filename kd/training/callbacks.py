"""Callbacks of a training: history, best epoch, remaining time, the teacher's measures."""

import math
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch import Tensor

from kd.errors import DropRequest
from kd.log import say
from kd.teachers.diagnosis import TeacherDiagnosis
from kd.training.distiller import Distiller
from kd.training.finite import check_row
from kd.training.remaining import Outlook, duration


class History(Callback):
    """Metrics of each finished epoch, in the checkpoint; a log line per epoch without progress
    bar. `train/loss` is the mean over the epoch, as one small batch says little.
    """

    state_key = "History"

    def __init__(
        self, name: str, watch: Callable[[Mapping[str, float]], None] | None = None
    ) -> None:
        self.name = name
        self.watch = watch
        self.watched = watch is not None  # by rank 0
        self.rows: list[dict[str, float]] = []
        self.losses: Tensor | float = 0.0  # sum over the epoch's steps
        self.steps = 0
        self.before = 0.0  # seconds of training before a resume
        self.started = time.perf_counter()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"watch": None}  # who watches is in the process that began

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, after the time of an earlier attempt."""
        self.before = self.rows[-1]["seconds"] if self.rows else 0.0
        self.started = time.perf_counter()
        for row in self.rows:
            self._show(trainer, row)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the mean of the loss."""
        self.losses = 0.0
        self.steps = 0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Add the step's loss, which Lightning has divided by the number of accumulated steps."""
        self.losses = self.losses + outputs["loss"] * trainer.accumulate_grad_batches
        self.steps += 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store the epoch's metrics; validation has already run."""
        row = self.row(trainer, trainer.current_epoch)
        check_row(row)
        self.rows.append(row)
        if trainer.is_global_zero and not trainer.progress_bar_callback:
            names = [name for name in ("train/loss", "val/loss", "val/acc") if name in row]
            numbers = "  ".join(f"{name} {row[name]:.4f}" for name in names)
            epoch = f"{len(self.rows)}/{trainer.max_epochs}"
            say(f"{self.name}: epoch {epoch}  {numbers}  {row['seconds']:.0f} s")
        self._show(trainer, row)

    def _show(self, trainer: L.Trainer, row: Mapping[str, float]) -> None:
        """Show an epoch to who watches; where that ends the training, all ranks stop."""
        if not self.watched:
            return
        dropped: DropRequest | None = None
        try:
            if self.watch:
                self.watch(row)
        except DropRequest as error:
            dropped = error
        if trainer.strategy.broadcast(dropped is not None):
            raise dropped or DropRequest

    def row(self, trainer: L.Trainer, epoch: int) -> dict[str, float]:
        """Return the trainer's current metrics, and the seconds of training so far."""
        seconds = self.before + time.perf_counter() - self.started
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for name in ("train/acc", "val/map"):  # no image had a label
            if math.isnan(metrics.get(name, 0.0)):
                del metrics[name]
        if isinstance(self.losses, Tensor):
            metrics["train/loss"] = float(trainer.strategy.reduce(self.losses / self.steps))
        return {"epoch": epoch, **metrics, "seconds": round(seconds, 3)}

    def state_dict(self) -> dict[str, object]:
        """Return the state for the checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state from the checkpoint."""
        self.rows = list(state_dict["rows"])


class StepLimit(Callback):
    """Stops at `trainer.max_steps` after a final validation, which Lightning skips in mid-epoch."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Request the stop."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True


class Best(ModelCheckpoint):
    """Keeps the best epoch on validation, the last of equal ones.

    A small validation part is often all correct long before training has converged.
    """

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether to keep this epoch, whose metric is the scalar `current`."""
        return super().check_monitor_top_k(trainer, current) or (
            current is not None
            and self.best_model_score is not None
            and bool(current == self.best_model_score)
        )


class RemainingTime(Callback):
    """Logs the remaining time of a stage and of the run after 20 seconds, and again every few
    minutes; on a terminal the progress bar shows it instead.

    Args:
        name: of the stage.
        outlook: what the run does after it; None if the stage is all.

    Attributes:
        left: text for the progress bar; empty in the first seconds.
    """

    FIRST, EVERY, LONG = 20.0, 180.0, 1800.0  # seconds
    SURE = 5.0  # seconds of steps, of which the first are slower

    def __init__(self, name: str, outlook: Outlook | None = None) -> None:
        self.name = name
        self.outlook = outlook
        self.left = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, after the steps of an earlier attempt."""
        self.started = time.perf_counter()
        self.before = trainer.global_step
        self.due = self.FIRST
        self.asked = 0.0
        self.asks = 0
        self.new_views = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of what comes before an epoch's steps: a teacher asked about a view."""
        self.epoch_began = time.perf_counter()
        self.new_views = new_views(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Stop that clock: a view that is stored takes no time in later epochs."""
        if batch_idx == 0:
            self.asked += time.perf_counter() - self.epoch_began
            self.asks += 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        """Log the remaining time when due."""
        passed = time.perf_counter() - self.started
        stepped = passed - self.asked
        done = trainer.global_step - self.before
        early = passed < self.FIRST or stepped < self.SURE
        if early or not trainer.is_global_zero or done == 0:
            return
        steps = int(trainer.estimated_stepping_batches)
        step = stepped / done
        views = self.new_views * self.asked / max(1, self.asks)
        left = step * (steps - trainer.global_step) + views
        whole = step * steps + self.asked + views
        rest = self.outlook.rest(whole) if self.outlook else 0.0
        run = f", {duration(left + rest)} of the run" if rest else ""
        self.left = f"{duration(left)}{run}"
        first = self.due == self.FIRST
        if passed < self.due or (trainer.progress_bar_callback and not first):
            return
        advice = self._advice(trainer, passed + left, rest) if first and not self.before else ""
        say(f"{self.name}: about {duration(left)} left of {duration(passed + left)}{run}{advice}")
        self.due = passed + self.EVERY

    def _advice(self, trainer: L.Trainer, whole: float, rest: float) -> str:
        """Suggest a line for half an hour where the stage and those after it take longer."""
        if whole + rest <= self.LONG:
            return ""
        if self.outlook:
            return f"; half an hour in all:\n  {self.outlook.shorter}"
        epochs = int((trainer.max_epochs or 0) * self.LONG / whole)
        if epochs < 1:
            return ""
        prefix = "teacher." if self.name.startswith("teacher") else ""
        return f"; {prefix}epochs={epochs} would take half an hour"


def new_views(trainer: L.Trainer, module: L.LightningModule) -> int:
    """Return how many views a teacher is still to be asked about, in the epochs to come."""
    if getattr(module, "teacher", None) is None:
        return 0
    assert isinstance(module, Distiller)
    numbers = [module.views.number(epoch) for epoch in range(trainer.max_epochs or 0)]
    now = module.current_epoch + 1
    return len({*numbers[now:]} - {*numbers[:now]})


class Progress(RichProgressBar):
    """Progress bar that also shows the remaining time of the stage and of the run."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Add `left` to the metrics."""
        found = super().get_metrics(trainer, pl_module)
        for each in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(each, RemainingTime) and each.left:
                found["left"] = each.left
        return found


class DiagnosisLog(Callback):
    """Logs the measures of the teacher's soft labels per epoch, at the current temperature."""

    def __init__(self, diagnosis: TeacherDiagnosis) -> None:
        self.diagnosis = diagnosis

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Use the temperature of the epoch's first step."""
        assert isinstance(pl_module, Distiller)
        temperature = pl_module.objective.temperature(trainer.global_step / pl_module.steps)
        for name, value in self.diagnosis.at(temperature).items():
            # Alike on all ranks, so is their mean.
            pl_module.log(f"teacher/{name}", value, on_step=False, on_epoch=True, sync_dist=True)


class OwnSignals(Callback):
    """Keeps this process's way to take SIGTERM; Lightning's would broadcast amid another exchange.

    For a process that torchrun or srun started.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember it, before Lightning's comes."""
        self.own = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put it back."""
        signal.signal(signal.SIGTERM, self.own)
