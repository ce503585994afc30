"""The smallest student: a single convolution."""

from torch import Tensor, nn

from kd.shape import ImageSize, height_and_width


class ShallowCNN(nn.Module):
    """One 3x3 convolution with batch norm and ReLU, 2x2 max pooling, one linear layer.

    Input [B, in_channels, H, W], output logits [B, num_classes]. 100,474
    parameters at width 4, 224x224, 3 channels and 2 classes. Nearly all are in the linear layer, so
    their number grows with the square of `image_size`.

    Args:
        width: channels of the convolution.
    """

    taps = ("relu",)

    def __init__(
        self, num_classes: int, in_channels: int, image_size: ImageSize, width: int = 4
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        height, wide = height_and_width(image_size)
        self.fc = nn.Linear(width * (height // 2) * (wide // 2), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.fc(self.pool(self.relu(self.bn(self.conv(x)))).flatten(1))
        return logits
