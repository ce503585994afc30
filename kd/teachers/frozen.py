"""A trained net as a teacher: evaluation mode, no gradient, out of reach of whatever trains the student."""

import copy

import torch
from torch import Tensor, nn

from kd.data.views import normalize


class Frozen:
    """A net that answers and never changes.

    This is deliberately no `nn.Module`: a submodule of the student's LightningModule would be put into train mode with
    it, would be moved by its batch-norm statistics, and would sit in every checkpoint and optimiser.

    Args:
        net: copied; the copy is put into evaluation mode and its parameters need no gradient.
        mean, std: the normalisation that the net was trained with, per channel, for pixels in [0, 1].
    """

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.net.to(memory_format=torch.channels_last)  # what the views come in
        self.mean, self.std = mean, std

    def __deepcopy__(self, memo: object) -> "Frozen":
        return self  # averaging a model's weights copies the model; its teacher never changes, so one is enough

    def to(self, device: torch.device) -> "Frozen":
        """Move the net; returns itself."""
        self.net.to(device)
        return self

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] in [0, 1] -> logits [B, num_classes], without gradient."""
        logits: Tensor = self.net(normalize(x, self.mean, self.std))
        return logits
