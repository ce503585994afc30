"""What goes along with a training: its history, best epoch and curves, and what its teacher's answers are worth."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from kd.log import say
from kd.teachers.watch import Watched
from kd.training.distiller import Distiller
from kd.training.finite import check_row


class History(Callback):
    """Metrics of each finished epoch, kept in the checkpoint; and a line for each where there is no progress bar."""

    state_key = "History"

    def __init__(
        self, name: str, watch: Callable[[Mapping[str, float]], None] | None = None
    ) -> None:
        self.name, self.watch = name, watch
        self.rows: list[dict[str, float]] = []
        self.before = 0.0  # seconds of training before a resume
        self.started = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, after an earlier attempt's time."""
        self.before = self.rows[-1]["seconds"] if self.rows else 0.0
        self.started = time.perf_counter()
        for row in self.rows if self.watch else ():
            self.watch(row)  # type: ignore[misc]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the epoch's metrics; validation has already run."""
        row = self.row(trainer, trainer.current_epoch)
        check_row(row)
        self.rows.append(row)
        if trainer.is_global_zero and not trainer.progress_bar_callback:
            say(
                f"{self.name}: epoch {len(self.rows)}/{trainer.max_epochs}  train/loss {row['train/loss']:.4f}  "
                f"val/loss {row['val/loss']:.4f}  val/acc {row['val/acc']:.4f}  {row['seconds']:.0f} s"
            )
        if self.watch:
            self.watch(row)

    def row(self, trainer: L.Trainer, epoch: int) -> dict[str, float]:
        """The metrics that the trainer has now, and the seconds of training so far."""
        seconds = self.before + time.perf_counter() - self.started
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if math.isnan(metrics.get("train/acc", 0.0)):  # no image of a short epoch had a label
            del metrics["train/acc"]
        return {"epoch": epoch, **metrics, "seconds": round(seconds, 3)}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.rows = list(state_dict["rows"])


class StepLimit(Callback):
    """Stops at `trainer.max_steps`, after a last validation, which Lightning leaves out in the middle of an epoch."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Ask for the stop."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True


class Best(ModelCheckpoint):
    """Keeps the epoch that is best on validation; of several that are equally good the last.

    A small validation part is soon told right altogether, long before training has come to rest.
    """

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether this epoch is to be kept."""
        return super().check_monitor_top_k(trainer, current) or (
            current is not None
            and self.best_model_score is not None
            and bool(current == self.best_model_score)
        )


class TimeLeft(Callback):
    """Says how long a stage still takes, 20 seconds into it, and again every few minutes.

    Args:
        name: the stage's.
    """

    FIRST, EVERY, LONG = 20.0, 180.0, 1800.0  # seconds

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, after the steps of an earlier attempt."""
        self.started, self.before, self.due = time.perf_counter(), trainer.global_step, self.FIRST

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        """Say it where it is time."""
        passed = time.perf_counter() - self.started
        done = trainer.global_step - self.before
        if passed < self.due or not trainer.is_global_zero or done == 0:
            return
        steps = int(trainer.estimated_stepping_batches)
        left = passed / done * (steps - trainer.global_step)
        whole = passed + left
        advice = self._advice(trainer, whole)
        say(f"{self.name}: about {duration(left)} left of {duration(whole)}{advice}")
        self.due = passed + self.EVERY

    def _advice(self, trainer: L.Trainer, whole: float) -> str:
        """What to type for a stage of half an hour, where it takes longer and that is said first."""
        epochs = int((trainer.max_epochs or 0) * self.LONG / whole)
        if whole <= self.LONG or self.before or self.due > self.FIRST or epochs < 1:
            return ""
        prefix = "teacher." if self.name.startswith("teacher") else ""
        return f"; {prefix}epochs={epochs} would take half an hour"


def duration(seconds: float) -> str:
    """A length of time for people: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class WatchLog(Callback):
    """Logs in each epoch what the teacher's soft labels are worth, at the temperature that they then have."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """At the temperature of the epoch's first step."""
        assert isinstance(pl_module, Distiller)
        temperature = pl_module.objective.temperature(trainer.global_step / pl_module.steps)
        for name, value in self.watched.at(temperature).items():
            pl_module.log(f"teacher/{name}", value, on_step=False, on_epoch=True)


class Curves(TensorBoardLogger):
    """Leaves out `epoch`, which Lightning adds to whatever is logged, so several times to a step."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As the values come, at the optimiser step they belong to."""
        super().log_metrics(
            {name: value for name, value in metrics.items() if name != "epoch"}, step
        )
