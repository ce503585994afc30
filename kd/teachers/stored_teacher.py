"""Stored logits as a teacher: what a net answered for exemplars when they were stored."""

import torch
from torch import Tensor

from kd.nets.hooks import NetOutput
from kd.nets.layer_paths import FeaturePaths


class StoredTeacher:
    """Replays stored logits without a net.

    Args:
        rows: float32 [training images, C], NaN where nothing is stored.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.paths: FeaturePaths | None = None

    def __deepcopy__(self, memo: object) -> "StoredTeacher":
        return self  # weight averaging copies the model; stored logits never change

    def to(self, device: torch.device) -> "StoredTeacher":
        """Move the rows; returns itself."""
        self.rows = self.rows.to(device)
        return self

    def prepare(self, view: int) -> None:
        """Do nothing; the stored logits serve all views."""

    def __call__(self, x: Tensor, index: Tensor, view: int) -> NetOutput:
        """Return the rows [B, C] of the images index [B]."""
        return NetOutput(self.rows[index % len(self.rows)])
