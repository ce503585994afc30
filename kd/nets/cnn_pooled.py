"""Small convolutional student in three blocks that pool early."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kd.nets.initial import kaiming


def pooled_block(
    inputs: int, outputs: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> nn.Sequential:
    """Build two 3x3 convolutions; max pooling after the first makes the second four times cheaper.

    [B, inputs, H, W] -> [B, outputs, H // 2, W // 2], after a GELU (Hendrycks & Gimpel 2016).

    Args:
        norm: builds the normalisation after each convolution, given the number of channels.
    """
    block = nn.Sequential()
    block.add_module("conv1", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
    block.add_module("pool", nn.MaxPool2d(2))
    block.add_module("norm1", norm(outputs))
    block.add_module("gelu1", nn.GELU())
    block.add_module("conv2", nn.Conv2d(outputs, outputs, 3, padding=1, bias=False))
    block.add_module("norm2", norm(outputs))
    block.add_module("gelu2", nn.GELU())
    return block


class PooledCNN(nn.Module):
    """3x3 stem, blocks that halve the resolution, global max pooling, one unbiased linear layer.

    Input [B, in_channels, H, W], output logits [B, num_classes]; H, W >= 2 to the power of the
    number of blocks. 105,904 parameters and 11.6 M multiplications for a 32x32 RGB image and ten
    classes.

    Args:
        stem: channels of the first convolution.
        widths: channels of each block.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        stem: int = 16,
        widths: Sequence[int] = (24, 48, 64),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.GELU()
        )
        channels = [stem, *widths]
        for number, outputs in enumerate(widths, start=1):
            self.add_module(f"block{number}", pooled_block(channels[number - 1], outputs))
        self.taps = tuple(f"block{number}" for number in range(1, len(channels)))
        self.fc = nn.Linear(channels[-1], num_classes, bias=False)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.stem(x)
        for path in self.taps:
            x = self.get_submodule(path)(x)
        pooled = F.max_pool2d(x, x.shape[2:]).flatten(1)  # not adaptive: LiteRT has no such layer
        logits: Tensor = self.fc(pooled)
        return logits
