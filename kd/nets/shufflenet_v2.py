"""ShuffleNetV2 for small images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.nets.initial import kaiming
from kd.nets.shufflenet_v1 import STEM, ChannelShuffle


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


class SplitUnit(nn.Module):
    """Half of the channels unchanged, half through three convolutions (Ma et al. 2018, Fig. 3c).

    [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU(inplace=True)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, C, H, W]."""
        kept, out = x.chunk(2, 1)
        out = self.relu(self.bn1(self.conv1(out)))
        out = self.relu(self.bn3(self.conv3(self.bn2(self.conv2(out)))))
        shuffled: Tensor = self.shuffle(torch.cat([kept, out], 1))
        return shuffled


class DownUnit(nn.Module):
    """Two parallel branches that halve the resolution (Ma et al. 2018, Fig. 3d).

    [B, inputs, H, W] -> [B, outputs, H / 2, W / 2].
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = _depthwise(inputs, 2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = _pointwise(inputs, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(inputs, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, 2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = _pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU(inplace=True)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / 2, W / 2]."""
        one = self.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        two = self.bn4(self.conv4(self.relu(self.bn3(self.conv3(x)))))
        two = self.relu(self.bn5(self.conv5(two)))
        shuffled: Tensor = self.shuffle(torch.cat([one, two], 1))
        return shuffled


class ShuffleNetV2(nn.Module):
    """Three groups of split and shuffle units (Ma et al. 2018, Table 5), with RepDistiller's names.

    Input [B, in_channels, H, W], output logits [B, num_classes]. As in Tian et al. 2020 a 1x1
    convolution at full resolution comes first. 1,355,528 parameters with 100 classes.

    Args:
        channels: of the three groups, even numbers, and of the last convolution.
        blocks: units in each group after the one that halves the resolution.
    """

    taps = ("layer1", "layer2", "layer3")
    stem = "relu"

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        channels: Sequence[int] = (116, 232, 464, 1024),
        blocks: Sequence[int] = (3, 7, 3),
    ) -> None:
        super().__init__()
        self.conv1 = _pointwise(in_channels, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        inputs = STEM
        for number, (outputs, units) in enumerate(zip(channels[:-1], blocks, strict=True), start=1):
            rest = [SplitUnit(outputs) for _ in range(units)]
            self.add_module(f"layer{number}", nn.Sequential(DownUnit(inputs, outputs), *rest))
            inputs = outputs
        self.conv2 = _pointwise(inputs, channels[-1])
        self.bn2 = nn.BatchNorm2d(channels[-1])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels[-1], num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        for tap in self.taps:
            x = self.get_submodule(tap)(x)
        x = self.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits
