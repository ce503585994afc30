"""Averaged weights, which are validated and kept instead of the last ones."""

from collections.abc import Sequence

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WeightAverage(WeightAveraging):
    """Averages weights and batch-norm statistics after each step.

    Values that do not change stay bit-identical, such as the body of a net whose head alone is
    trained.

    Args:
        ema: decay of a moving average. It starts at (1 + steps) / (10 + steps), so that the initial
            weights fade quickly (as TensorFlow's `ExponentialMovingAverage` with `num_updates`).
        swa: share of the steps after which all count equally, if `ema` is None; earlier ones are
            ignored.
    """

    def __init__(self, ema: float | None = None, swa: float | None = None) -> None:
        super().__init__(multi_avg_fn=self._toward)
        self.ema = ema
        self.swa = swa or 0.0
        self.begin = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Count the steps ahead."""
        super().setup(trainer, pl_module, stage)
        self.begin = int(self.swa * trainer.estimated_stepping_batches)

    def rate(self, steps: int) -> float:
        """Return how far the average moves toward the weights after `steps` updates, in [0, 1]."""
        if self.ema is not None:
            return 1 - min(self.ema, (1 + steps) / (10 + steps))
        return 1 / max(1, steps - self.begin + 1)

    def _toward(
        self, average: Sequence[Tensor], current: Sequence[Tensor], steps: Tensor | int
    ) -> None:
        average, current = list(average), list(current)
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, current, self.rate(int(steps)))
        else:  # batch norms count their steps
            torch._foreach_copy_(average, current)
