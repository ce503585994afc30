"""A teacher that is looked into: always asked live, as what it computes on the way is kept nowhere."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from kd.config.precision import Precision
from kd.nets.hooks import Taps, named
from kd.nets.layer_paths import Points
from kd.teachers.frozen import Frozen
from kd.teachers.live import Live, Outputs, computing_in


class Observed(Live):
    """Asks the net about every batch, for its logits and for what its taps see, in one pass.

    Args:
        answers: the net; it gets hooks.
        points: where it is looked at.
        kinds: which of `kd.nets.hooks.KINDS` are wanted.
        outputs: what logits are rounded to; what the taps see is not rounded.
        precision: what the net computes in.
    """

    def __init__(
        self,
        answers: Frozen,
        points: Points,
        kinds: Collection[str],
        outputs: Outputs = "float16",
        precision: Precision = "32-true",
    ) -> None:
        super().__init__(answers, outputs, precision)
        self.points, self.taps = points, Taps(answers.net, points, kinds)

    @torch.no_grad()
    def look(self, x: Tensor) -> dict[str, Any]:
        """The teacher's signals by name, `logits_t` float32 [B, classes] among them, for x [B, C, H, W] in [0, 1]."""
        with computing_in(self.precision, x.device):
            logits, seen = self.taps(self.answers, x)
        return {"logits_t": self._rounded(logits).float(), **named(seen, "t")}
