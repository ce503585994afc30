"""Trained net as a teacher: evaluation mode, no gradient, out of reach of the training."""

import copy

import torch
from torch import Tensor, nn

from kd.data.views import normalize


class FrozenTeacher:
    """Net that never changes.

    It is deliberately no `nn.Module`. As a submodule of the student's LightningModule it would be
    set to train mode, its batch-norm statistics would move, and it would be in every checkpoint and
    optimiser.

    Args:
        net: copied; the copy is in evaluation mode and its parameters need no gradient.
        mean, std: normalisation of the net's training, per channel, for pixels in [0, 1].
    """

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.net.to(memory_format=torch.channels_last)  # memory format of the views
        self.mean = mean
        self.std = std

    def __deepcopy__(self, memo: object) -> "FrozenTeacher":
        # Weight averaging copies the model; the teacher never changes, so one is enough
        return self

    def to(self, device: torch.device) -> "FrozenTeacher":
        """Move the net; returns itself."""
        self.net.to(device)
        return self

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Compute x [B, C, H, W] in [0, 1] -> logits [B, num_classes], without gradient."""
        logits: Tensor = self.net(normalize(x, self.mean, self.std))
        return logits
