"""Interruption of a training at a given epoch."""

from typing import Any

import pytest

import kd.training.fit
from kd.training.callbacks import History


def stop_before(epoch: int, patch: pytest.MonkeyPatch) -> None:
    """Interrupt each training of this process before an epoch, like Ctrl-C."""

    class Stop(History):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == epoch:
                raise SystemExit

    patch.setattr(kd.training.fit, "History", Stop)
