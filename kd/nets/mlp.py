"""Multi-layer perceptron on the flattened pixels."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from kd.shape import ImageSize, height_and_width


class MLP(nn.Module):
    """Linear layers with ReLU between them, on the flattened pixels.

    Input [B, in_channels, H, W], output logits [B, num_classes]. On 28x28 gray
    images with 10 classes, `hidden=[128]` is the 784-128-10 net and `hidden=[64]` the 784-64-10 net
    of many distillation tutorials.

    Args:
        hidden: width of each hidden layer, in order; may be empty (a linear classifier).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: ImageSize,
        hidden: Sequence[int] = (128,),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        pixels = in_channels * math.prod(height_and_width(image_size))
        for inputs, outputs in pairwise([pixels, *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(hidden[-1] if hidden else pixels, num_classes)

    @property
    def taps(self) -> tuple[str, ...]:
        """Each hidden layer, after its ReLU."""
        return tuple(
            f"hidden.{i}" for i, module in enumerate(self.hidden) if isinstance(module, nn.ReLU)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.fc(self.hidden(x.flatten(1)))
        return logits
