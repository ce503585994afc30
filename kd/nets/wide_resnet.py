"""Wide residual nets for small images: WRN-40-2, WRN-16-2 and others."""

from torch import Tensor, nn

from kd.nets.initial import kaiming


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions (Zagoruyko & Komodakis 2016, Fig.
    1c).

    [B, inputs, H, W] -> [B, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / stride, W / stride], a sum without activation."""
        activated = self.relu(self.bn1(x))
        # A convolutional shortcut reads the activated input; an identity shortcut the block's
        # input.
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(self.relu(self.bn2(self.conv1(activated)))) + shortcut
        return out


class WideResNet(nn.Module):
    """Three groups of pre-activation blocks, `widen` times wider (Zagoruyko & Komodakis 2016).

    Input [B, in_channels, H, W], output logits [B, num_classes]. With 100 classes WRN-40-2 has
    2,255,156 parameters, WRN-16-2 703,284.

    Args:
        depth: 6n + 4, for n blocks per group.
        widen: factor of the groups' 16, 32 and 64 channels.

    Raises:
        ValueError: unknown depth.
    """

    taps = ("block1", "block2", "block3")
    stem = "conv1"
    other_names = (  # those of RepDistiller and xternalz/WideResNet-pytorch
        (r"^(block\d)\.layer\.(\d+)\.convShortcut\.", r"\1.\2.shortcut."),
        (r"^(block\d)\.layer\.", r"\1."),
        (r"^bn1\.", "bn."),
    )

    def __init__(self, num_classes: int, depth: int, widen: int, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth: found {depth}, accepted is 6n + 4, such as 10, 16, 28, 40")
        channels = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        for group in (1, 2, 3):
            inputs = channels[group - 1]
            outputs = channels[group]
            first = PreActivationBlock(inputs, outputs, stride=1 if group == 1 else 2)
            rest = [
                PreActivationBlock(outputs, outputs, stride=1) for _ in range((depth - 4) // 6 - 1)
            ]
            self.add_module(f"block{group}", nn.Sequential(first, *rest))
        self.bn = nn.BatchNorm2d(channels[3])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[3], num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.conv1(x)
        for group in (1, 2, 3):
            x = self.get_submodule(f"block{group}")(x)
        logits: Tensor = self.fc(self.avgpool(self.relu(self.bn(x))).flatten(1))
        return logits
