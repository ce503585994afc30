"""What a net said before: the last task's net as a teacher of the next is a frozen stage; of exemplars it is stored."""

import torch
from torch import Tensor


class Snapshot:
    """Replays stored logits; no net is asked.

    Args:
        rows: float32 [training images, C], NaN where nothing is stored.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __deepcopy__(self, memo: object) -> "Snapshot":
        return self  # averaging a model's weights copies the model; what was stored never changes

    def to(self, device: torch.device) -> "Snapshot":
        """Move the rows; returns itself."""
        self.rows = self.rows.to(device)
        return self

    def prepare(self, view: int) -> None:
        """All is known beforehand, whatever the view."""

    def __call__(self, x: Tensor, index: Tensor, view: int) -> Tensor:
        """The rows [B, C] of the images index [B]."""
        return self.rows[index]
