"""Net that learns CIFAR-10 in few epochs: whitened first layer, early pooling, fast shifts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.nets.cnn_pooled import pooled_block

PATCH = 2  # side of the patches in the first layer
CHUNK = 256  # images whose patches are in memory at once
SMALLEST = 9  # pixels; smaller images vanish in three blocks


class Shift(nn.Module):
    """Add a learned number per channel, which plain SGD moves `rate` times faster.

    The parameter is stored divided by sqrt(rate), so its gradient and its effect both grow by that
    factor. Weight decay removes the same share of it as of the others.

    Args:
        rate: > 0.
    """

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.factor = rate**0.5

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels, H, W] -> the same shape and type."""
        shifted: Tensor = x + (self.factor * self.shift).to(x.dtype)[:, None, None]
        return shifted


class SpeedNet(nn.Module):
    """Whitened 2x2 convolution, three blocks that pool early, max pooling, scaled linear layer.

    The ideas are Keller Jordan's, 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"; the code
    is our own. The first layer's filters are the principal directions of the training images' 2x2
    patches, divided by their standard deviation, and their negatives. They are frozen
    (`start_from`). Batch norms have no scale, and a shift with its own learning rate. The 3x3
    convolutions start as the identity as far as channels allow.

    Input [B, in_channels, image_size, image_size], output logits [B, num_classes]. 1,971,640
    parameters, 288 of them frozen, and 118 M multiplications for a 32x32 RGB image and ten classes.

    Args:
        widths: channels of the three blocks.
        shift_rate: learning rate of the norms' shifts relative to the optimiser's; exact for SGD.
        scale: factor before the last layer; smaller logits train more stably.
        norm_momentum: weight of the newest batch in running statistics, as in torch.

    Raises:
        ValueError: not three widths, images below 9 pixels, or a rate that is not positive.
    """

    taps = ("block1", "block2", "block3")

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (64, 256, 256),
        shift_rate: float = 64.0,
        scale: float = 1 / 9,
        norm_momentum: float = 0.4,
    ) -> None:
        super().__init__()
        if len(widths) != 3:
            raise ValueError(f"widths: found {list(widths)}, needed are three numbers")
        if image_size < SMALLEST:
            raise ValueError(f"image_size: found {image_size}, accepted is from {SMALLEST} pixels")
        if shift_rate <= 0:
            raise ValueError(f"shift_rate: found {shift_rate}, accepted is a number above 0")

        def norm(channels: int) -> nn.Module:
            still = nn.BatchNorm2d(channels, affine=False, momentum=norm_momentum)
            return nn.Sequential(still, Shift(channels, shift_rate))

        channels = [2 * in_channels * PATCH**2, *widths]
        self.whiten = nn.Conv2d(in_channels, channels[0], PATCH)
        self.whiten.weight.requires_grad_(False)
        self.gelu = nn.GELU()
        for number in range(1, 4):
            block = pooled_block(channels[number - 1], channels[number], norm)
            self.add_module(f"block{number}", block)
        self.fc = nn.Linear(channels[-1], num_classes, bias=False)
        self.scale = scale
        with torch.no_grad():
            nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
            for module in self.modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                    nn.init.dirac_(module.weight[: module.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, image_size, image_size] -> logits [B, num_classes]."""
        x = self.gelu(self.whiten(x))
        for path in self.taps:
            x = self.get_submodule(path)(x)
        pooled = F.max_pool2d(x, x.shape[2:]).flatten(1)  # not adaptive: LiteRT has no such layer
        logits: Tensor = self.fc(pooled * self.scale)
        return logits

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Set the first layer's filters from the 2x2 patches of training images.

        Args:
            images: float32 [N, in_channels, H, W], normalised as in training.
        """
        variances, directions = torch.linalg.eigh(_patch_covariance(images))  # one column each
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        directions = directions * largest.sign()  # else LAPACK would choose the sign
        filters = (directions / (variances.clamp(min=0) + 5e-4).sqrt()).T
        # Largest variance first
        filters = filters.reshape(-1, *self.whiten.weight.shape[1:]).flip(0)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


def _patch_covariance(images: Tensor) -> Tensor:
    """Return the covariance of all 2x2 patches, float64 [C * 4, C * 4], in a filter's order."""
    width = images.shape[1] * PATCH**2
    count = 0
    total = torch.zeros(width, dtype=torch.float64)
    products = torch.zeros(width, width, dtype=torch.float64)
    for chunk in torch.split(images, CHUNK):
        patches = nn.functional.unfold(chunk, PATCH).double().transpose(0, 1).flatten(1)
        count += patches.shape[1]
        total += patches.sum(1)
        products += patches @ patches.T
    mean = total / count
    return products / count - mean[:, None] * mean
