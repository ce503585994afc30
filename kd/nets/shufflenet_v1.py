"""ShuffleNetV1 for small images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.nets.initial import kaiming

STEM = 24  # channels of the first convolution


class ChannelShuffle(nn.Module):
    """Shuffle channels between groups (Zhang et al. 2018, Fig. 1c); [B, C, H, W] -> the same."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, C, H, W]."""
        batch, channels, height, width = x.shape
        split = x.reshape(batch, self.groups, channels // self.groups, height, width)
        return split.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Grouped 1x1 convolutions around a 3x3 depthwise one (Zhang et al. 2018, Fig. 2b and c).

    [B, inputs, H, W] -> [B, outputs, H, W]. With stride 2: [B, inputs + outputs, H / 2, W / 2], the
    shortcut's channels last.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        inner = outputs // 4
        first = 1 if inputs == STEM else groups
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=first, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.shuffle1 = ChannelShuffle(first)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> see the class; after the last ReLU."""
        out = self.shuffle1(self.relu(self.bn1(self.conv1(x))))
        # The paper has no ReLU after the second convolution; the nets of distillation papers have
        # one.
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        out = out + x if self.shortcut is None else torch.cat([out, self.shortcut(x)], 1)
        activated: Tensor = self.relu(out)
        return activated


class ShuffleNetV1(nn.Module):
    """Three groups of shuffle units (Zhang et al. 2018, Table 1), with RepDistiller's names.

    Input [B, in_channels, H, W], output logits [B, num_classes]. As in Tian et al. 2020 a 1x1
    convolution at full resolution comes first. 949,258 parameters with 100 classes.

    Args:
        channels: of the three groups.
        blocks: units in each of them.
        groups: of the 1x1 convolutions.
    """

    taps = ("layer1", "layer2", "layer3")
    stem = "relu"

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        channels: Sequence[int] = (240, 480, 960),
        blocks: Sequence[int] = (4, 8, 4),
        groups: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        inputs = STEM
        for number, (outputs, units) in enumerate(zip(channels, blocks, strict=True), start=1):
            first = ShuffleUnit(inputs, outputs - inputs, 2, groups)
            rest = [ShuffleUnit(outputs, outputs, 1, groups) for _ in range(units - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            inputs = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        for tap in self.taps:
            x = self.get_submodule(tap)(x)
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits
