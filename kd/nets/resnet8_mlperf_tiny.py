"""ResNet-8 of the MLPerf Tiny benchmark for small devices."""

from torch import Tensor, nn
from torch.nn import functional as F

from kd.nets.initial import kaiming


class SameConv(nn.Conv2d):
    """Convolution of stride 1 or 2 with Keras's `same` padding, which pads the end of odd sizes.

    [B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def forward(self, input: Tensor) -> Tensor:
        """input [B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        width, height = (self._padding_of(input.shape[axis]) for axis in (3, 2))
        return super().forward(F.pad(input, (*width, *height)))

    def _padding_of(self, side: int) -> tuple[int, int]:
        stride = self.stride[0]
        kernel = self.kernel_size[0]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        return total // 2, total - total // 2


class BiasedBlock(nn.Module):
    """Two 3x3 convolutions with biases and batch norm; a widening shortcut is a plain convolution.

    [B, inputs, H, W] -> [B, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv(inputs, outputs, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = SameConv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = SameConv(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / stride, W / stride], after the last ReLU."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        out = self.relu(self.bn1(self.conv1(x)))
        activated: Tensor = self.relu(self.bn2(self.conv2(out)) + shortcut)
        return activated


class ResNet8MLPerfTiny(nn.Module):
    """Three groups of one block (Banbury et al. 2021; mlcommons/tiny, `resnet_v1_eembc`).

    Input [B, in_channels, H, W], output logits [B, num_classes]. With 10 classes and 32x32 colour
    images it has 78,666 numbers in Keras's count, 78,186 parameters and 480 batch-norm statistics,
    and 12.5 M multiplications. Padding and batch-norm epsilon are Keras's, so that its weights
    transfer.

    Args:
        width: channels of the first group; each later one has twice as many as the one before.
    """

    taps = ("layer1", "layer2", "layer3")
    stem = "relu"

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = SameConv(in_channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = BiasedBlock(width, width, 1)
        self.layer2 = BiasedBlock(width, 2 * width, 2)
        self.layer3 = BiasedBlock(2 * width, 4 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
