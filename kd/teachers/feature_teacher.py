"""A teacher that is looked into: always asked live, as what it computes on the way is kept nowhere."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from kd.nets.hooks import Taps, named
from kd.nets.layer_paths import Points
from kd.teachers.frozen import Frozen
from kd.teachers.live import Live, Outputs


class Observed(Live):
    """Asks the net about every batch, for its logits and for what its taps see, in one pass.

    Args:
        answers: the net; it gets hooks.
        points: where it is looked at.
        kinds: which of `kd.nets.hooks.KINDS` are wanted.
        outputs: what logits are rounded to; what the taps see is not rounded.
    """

    def __init__(
        self, answers: Frozen, points: Points, kinds: Collection[str], outputs: Outputs = "float16"
    ) -> None:
        super().__init__(answers, outputs)
        self.points, self.taps = points, Taps(answers.net, points, kinds)

    @torch.no_grad()
    def look(self, x: Tensor) -> dict[str, Any]:
        """The teacher's signals by name, `logits_t` float32 [B, classes] among them, for x [B, C, H, W] in [0, 1]."""
        logits, seen = self.taps(self.answers, x)
        return {"logits_t": self._rounded(logits).float(), **named(seen, "t")}
