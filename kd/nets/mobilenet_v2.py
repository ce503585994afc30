"""MobileNetV2 for small images, at half width as in distillation papers."""

from torch import Tensor, nn

from kd.nets.initial import kaiming

# Per group: channels at full width, blocks, stride of the first.
GROUPS = (
    (16, 1, 1),
    (24, 2, 1),
    (32, 3, 2),
    (64, 4, 2),
    (96, 3, 1),
    (160, 3, 2),
    (320, 1, 1),
)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, 1x1 projection (Sandler et al. 2018, Fig. 3b).

    [B, inputs, H, W] -> [B, outputs, H / stride, W / stride], without a final activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        inner = inputs * expansion
        self.conv = nn.Sequential(
            _conv(inputs, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            _conv(inner, inner, 3, stride, groups=inner),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            _conv(inner, outputs, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Seven groups of inverted residual blocks (Sandler et al. 2018, Table 2), RepDistiller's
    names.

    Input [B, in_channels, H, W], output logits [B, num_classes]. As in Tian et al. 2020: the second
    group keeps its resolution, ReLU replaces ReLU6, there is no dropout. 812,836 parameters at half
    width and 100 classes.

    Args:
        width: share of the paper's channels, > 0; the last convolution has at least 1,280.
        expansion: ratio of a block's inner channels to its input.
    """

    taps = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
    stem = "conv1"

    def __init__(
        self, num_classes: int, in_channels: int = 3, width: float = 0.5, expansion: int = 6
    ) -> None:
        super().__init__()
        if width <= 0:
            raise ValueError(f"width: found {width}, accepted is above 0")
        inputs = int(32 * width)
        self.conv1 = self._layer(in_channels, inputs, 3, 2)
        groups = []
        for number, (channels, blocks, stride) in enumerate(GROUPS):
            outputs = int(channels * width)
            times = expansion if number else 1
            first = InvertedResidual(inputs, outputs, stride, times)
            rest = [InvertedResidual(outputs, outputs, 1, times) for _ in range(blocks - 1)]
            groups.append(nn.Sequential(first, *rest))
            inputs = outputs
        self.blocks = nn.Sequential(*groups)
        last = max(1280, int(1280 * width))
        self.conv2 = self._layer(inputs, last, 1, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))
        kaiming(self)

    @staticmethod
    def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            _conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.conv2(self.blocks(self.conv1(x)))
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits
