"""A plain convolutional student."""

from torch import Tensor, nn


class CNN(nn.Module):
    """Four 3x3 convolutions in two groups, global average pooling, one linear layer; no batch norm.

    Input [B, in_channels, H, W] with H, W >= 2, output logits [B, num_classes].
    93,898 parameters at width 32, 3 channels and 10 classes.

    Args:
        width: channels of the first convolution; the other three have twice as many.
    """

    taps = ("features.3", "features.8")  # the two groups

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 32) -> None:
        super().__init__()
        wide = 2 * width
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, wide, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(wide, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):  # without batch norm, PyTorch's default start loses the signal by layer 4
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits
