"""Colour and sharpness, one strength per image, as per-pixel products and sums in fixed order."""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # of red, green, blue, as in torchvision


def gray(x: Tensor) -> Tensor:
    """Convert [B, 3, H, W] to luma (ITU-R BT.601), float32 [B, 1, H, W], in the same unit."""
    red, green, blue = x.float().split(1, 1)  # type: ignore[no-untyped-call]
    seen: Tensor = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return seen


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    """Scale each pixel's distance from gray.

    Args:
        x: float32 [B, C, H, W] in [0, 1]; gray images (C = 1) are unchanged.
        factor: [B], >= 0; 0 gives gray, 1 the image itself.
    """
    if x.shape[1] != 3:
        return x
    factor = factor.float()[:, None, None, None]
    return (factor * x + (1 - factor) * gray(x)).clamp(0, 1)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Shift the hue, at the same saturation and value (HSV).

    Args:
        x: float32 [B, C, H, W] in [0, 1]; gray images (C = 1) are unchanged.
        turn: [B], in full turns, in [-0.5, 0.5].
    """
    if x.shape[1] != 3:
        return x
    most = x.amax(1, keepdim=True)
    least = x.amin(1, keepdim=True)
    spread = most - least
    toward = (most - x) / spread.clamp(min=1e-12)
    red, green, blue = toward.split(1, 1)  # type: ignore[no-untyped-call]
    at_red = x[:, :1] == most
    at_green = (x[:, 1:2] == most) & (x[:, :1] != most)
    sixths = torch.where(
        at_red, blue - green, torch.where(at_green, 2 + red - blue, 4 + green - red)
    )
    moved = (sixths / 6 + turn.float()[:, None, None, None]) % 1 * 6
    # A channel is `most` within 1.5 sixths of its own hue, `least` beyond 2.5, and linear between.
    own = x.new_tensor([0.0, 2.0, 4.0])[:, None, None]
    distance = ((moved - own + 3) % 6 - 3).abs()
    return (most - spread * (distance - 1).clamp(0, 1)).clamp(0, 1)


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur each image with its own Gaussian, mirrored at the edges.

    Args:
        x: float32 [B, C, H, W].
        sigma: [B], in pixels, > 0.
        radius: half-width of the kernel in pixels, below H and W.
    """
    steps = torch.arange(-radius, radius + 1, device=x.device)
    weights = torch.exp(-0.5 * (steps / sigma.double()[:, None]) ** 2)
    # Cumulative order: the order of a plain sum would depend on the batch.
    total = weights.cumsum(1)[:, -1:]
    kernel = (weights / total).float()[:, :, None, None, None]
    for axis, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded = F.pad(x, pad, mode="reflect")
        size = x.shape[axis]
        x = padded.narrow(axis, 0, size) * kernel[:, 0]
        for i in range(1, len(steps)):
            x = x + padded.narrow(axis, i, size) * kernel[:, i]
    return x
