"""Residual nets for small images, as in distillation papers: ResNet-20, 56, 8x4, 32x4, ..."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from kd.nets.initial import kaiming
from kd.nets.resnet import BasicBlock


class PaddedShortcut(nn.Module):
    """Shortcut without parameters: strided pixels, zero channels (He et al. 2015, option A).

    [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]. Half of the new channels come before
    the old ones and half after, as in akamaster/pytorch_resnet_cifar10.

    Raises:
        ValueError: there are fewer output than input channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        if outputs < inputs:
            raise ValueError(f"widths: shortcut A cannot go from {inputs} channels to {outputs}")
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class ResNetCIFAR(nn.Module):
    """Three groups of basic blocks at resolution 1, 1/2 and 1/4 (He et al. 2015, section 4.2).

    Input [B, in_channels, H, W], output logits [B, num_classes]. Parameters with 100 classes and
    shortcut B: ResNet-20 278,324, ResNet-56 861,620, ResNet-8x4 1,233,540, ResNet-32x4 7,433,860.
    With 10 classes and shortcut A: ResNet-20 269,722, ResNet-32 464,154, ResNet-56 853,018.

    Args:
        depth: 6n + 2, for n blocks per group.
        widths: channels of the first convolution and of the three groups; "x4" has [32, 64, 128,
            256].
        shortcut: for a change of width or resolution. A takes every second pixel and pads with
            zeros, as He et al. on CIFAR-10. B is a 1x1 convolution with batch norm, as Tian et al.
            2020.

    Raises:
        ValueError: unknown depth or shortcut, or not four widths.
    """

    taps = ("layer1", "layer2", "layer3")
    stem = "relu"
    other_names = ((r"^linear\.", "fc."),)  # akamaster/pytorch_resnet_cifar10

    def __init__(
        self,
        num_classes: int,
        depth: int,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 16, 32, 64),
        shortcut: Literal["A", "B"] = "B",
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth: found {depth}, accepted is 6n + 2, such as 8, 20, 32, 56")
        if len(widths) != 4:
            raise ValueError(
                f"widths: found {list(widths)}, accepted are four: of the first convolution "
                "and three groups"
            )
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut: found {shortcut!r}, accepted are A, B")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        for group in (1, 2, 3):
            inputs = widths[group - 1]
            outputs = widths[group]
            stride = 1 if group == 1 else 2
            first = BasicBlock(inputs, outputs, stride)
            if first.downsample is not None and shortcut == "A":
                first.downsample = PaddedShortcut(inputs, outputs, stride)
            rest = [BasicBlock(outputs, outputs, stride=1) for _ in range((depth - 2) // 6 - 1)]
            self.add_module(f"layer{group}", nn.Sequential(first, *rest))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        for group in (1, 2, 3):
            x = self.get_submodule(f"layer{group}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
