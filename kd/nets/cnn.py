"""Plain convolutional student."""

from collections.abc import Sequence

from torch import Tensor, nn


class CNN(nn.Module):
    """Four 3x3 convolutions with batch norm and ReLU, two kinds of pooling, one linear layer.

    Input [B, in_channels, H, W], output logits [B, num_classes]; H, W >= 2 to the power of the
    number of poolings. 94,122 parameters at width 32, 3 channels and 10 classes, and 10.3 M
    multiplications for a 32x32 image.

    Args:
        width: channels of the first convolution; the other three have twice as many.
        pools: numbers (from 1) of the convolutions that a max pooling follows. Early pooling is
            cheaper.
        batch_norm: without it the convolutions have biases.

    Raises:
        ValueError: `pools` has a number outside 1 to 4, or one twice.
    """

    taps = ("features.relu2", "features.relu4")

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 32,
        pools: Sequence[int] = (1, 2),
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if len(set(pools)) != len(pools) or not set(pools) <= {1, 2, 3, 4}:
            raise ValueError(
                f"pools: found {list(pools)}, accepted are different ones of 1, 2, 3, 4"
            )
        widths = (in_channels, width, 2 * width, 2 * width, 2 * width)
        self.features = nn.Sequential()
        for n in range(1, 5):
            conv = nn.Conv2d(widths[n - 1], widths[n], 3, padding=1, bias=not batch_norm)
            # Without batch norm, PyTorch's default init loses the signal by the fourth layer.
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            self.features.add_module(f"conv{n}", conv)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            else:
                self.features.add_module(f"bn{n}", nn.BatchNorm2d(widths[n]))
            self.features.add_module(f"relu{n}", nn.ReLU())
            if n in pools:
                self.features.add_module(f"pool{n}", nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[4], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits
