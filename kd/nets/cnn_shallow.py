"""The smallest student: a single convolution."""

from torch import Tensor, nn


class ShallowCNN(nn.Module):
    """One 3x3 convolution with batch norm and ReLU, 2x2 max pooling, one linear layer.

    Input [B, in_channels, image_size, image_size], output logits [B, num_classes]. 100,474
    parameters at width 4, 224x224, 3 channels and 2 classes. Nearly all are in the linear layer, so
    their number grows with the square of `image_size`.

    Args:
        width: channels of the convolution.
    """

    taps = ("relu",)

    def __init__(self, num_classes: int, in_channels: int, image_size: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(width * (image_size // 2) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, image_size, image_size] -> logits [B, num_classes]."""
        logits: Tensor = self.fc(self.pool(self.relu(self.bn(self.conv(x)))).flatten(1))
        return logits
