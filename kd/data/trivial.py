"""TrivialAugment: one random operation per image at one random strength (Müller & Hutter 2021).

Operations and ranges are the paper's "wide" ones, as in torchvision's `TrivialAugmentWide`. All
work on uint8 pixels and sum integers only.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kd.data.colour import gray

BINS = 31  # strengths, evenly spaced from none to the maximum


def trivial_augment(
    pixels: Tensor,
    operation: Tensor,
    strength: Tensor,
    sign: Tensor,
    *,
    drawn_at: tuple[int, int] | None = None,
) -> Tensor:
    """Apply the drawn operation to each image.

    Args:
        pixels: uint8 [B, C, H, W], C = 1 or 3.
        operation, strength, sign: draws in [0, 1), float64 [B].
        drawn_at: height and width that the strengths in pixels refer to; None for the images' own.

    Returns:
        uint8 [B, C, H, W].
    """
    chosen = (operation * len(OPERATIONS)).long()
    step = (strength * BINS).long()
    found = pixels.clone()
    height, width = drawn_at or (pixels.shape[2], pixels.shape[3])
    larger = {"TranslateX": pixels.shape[3] / width, "TranslateY": pixels.shape[2] / height}
    for number, (name, (apply, least, most, signed)) in enumerate(OPERATIONS.items()):
        mine = (chosen == number).nonzero()[:, 0]
        if not len(mine):
            continue
        size = least + (most - least) * step[mine].double() / (BINS - 1)
        size = torch.where((sign[mine] < 0.5) & signed, -size, size)
        size = size.trunc() * larger[name] if name in larger else size
        found[mine] = apply(pixels[mine], size)
    return found


class Operation(NamedTuple):
    """Function, strength in the first and the last bin, and whether the sign is random."""

    apply: Callable[[Tensor, Tensor], Tensor]
    least: float = 0.0
    most: float = 0.0
    signed: bool = False


def _same(x: Tensor, size: Tensor) -> Tensor:
    return x


def _move(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sample pixels at float64 positions, broadcast to [B, H, W]: nearest, black outside."""
    height, width = x.shape[2:]
    rows, columns = rows.round().long(), columns.round().long()
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    place = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)[:, None]
    taken = x.flatten(2).gather(2, place.expand(-1, x.shape[1], -1)).view(x.shape)
    return taken * inside[:, None]


def _places(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column of each pixel, float64 [1, H, 1] and [1, 1, W]."""
    height, width = x.shape[2:]
    rows, columns = (torch.arange(n, device=x.device).double() for n in (height, width))
    return rows[None, :, None], columns[None, None, :]


def _shear_x(x: Tensor, size: Tensor) -> Tensor:
    rows, columns = _places(x)
    return _move(x, rows, columns + size[:, None, None] * (rows + 0.5))


def _shear_y(x: Tensor, size: Tensor) -> Tensor:
    rows, columns = _places(x)
    return _move(x, rows + size[:, None, None] * (columns + 0.5), columns)


def _translate_x(x: Tensor, size: Tensor) -> Tensor:
    rows, columns = _places(x)
    return _move(x, rows, columns - size.trunc()[:, None, None])


def _translate_y(x: Tensor, size: Tensor) -> Tensor:
    rows, columns = _places(x)
    return _move(x, rows - size.trunc()[:, None, None], columns)


def _rotate(x: Tensor, size: Tensor) -> Tensor:
    rows, columns = _places(x)
    middle_y, middle_x = ((n - 1) / 2 for n in x.shape[2:])
    angle = (size * math.pi / 180)[:, None, None]
    down = rows - middle_y
    right = columns - middle_x
    return _move(
        x,
        angle.sin() * right + angle.cos() * down + middle_y,
        angle.cos() * right - angle.sin() * down + middle_x,
    )


def _blend(x: Tensor, other: Tensor, size: Tensor) -> Tensor:
    """Blend `1 + size` times the image with the rest of another, in integers 0 to 255; [B, C, H,
    W].
    """
    own, rest = (share[:, None, None, None].float() for share in (1 + size, -size))
    return (own * x + rest * other).clamp(0, 255).to(torch.uint8)


def _gray(x: Tensor) -> Tensor:
    return (gray(x) if x.shape[1] == 3 else x).to(torch.uint8)


def _brightness(x: Tensor, size: Tensor) -> Tensor:
    return _blend(x, torch.zeros_like(x), size)


def _colour(x: Tensor, size: Tensor) -> Tensor:
    return _blend(x, _gray(x), size) if x.shape[1] == 3 else x


def _contrast(x: Tensor, size: Tensor) -> Tensor:
    total = _gray(x).sum((1, 2, 3), dtype=torch.int64).double()
    mean = (total / (x.shape[2] * x.shape[3])).float()
    return _blend(x, mean[:, None, None, None], size)


def _sharpness(x: Tensor, size: Tensor) -> Tensor:
    height, width = x.shape[2:]
    if min(height, width) < 3:
        return x
    wide = x.long()
    around = 4 * wide[:, :, 1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            around = around + wide[:, :, row : row + height - 2, column : column + width - 2]
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = ((2 * around + 13) // 26).to(torch.uint8)  # a 13th, rounded
    return _blend(x, smooth, size)


def _posterize(x: Tensor, size: Tensor) -> Tensor:
    kept = 256 - 2 ** (8 - size.round()).to(torch.int64)
    return x & kept.to(torch.uint8)[:, None, None, None]


def _solarize(x: Tensor, size: Tensor) -> Tensor:
    return torch.where(x >= size[:, None, None, None], 255 - x, x)


def _autocontrast(x: Tensor, size: Tensor) -> Tensor:
    flat = x.flatten(2).float()
    least = flat.amin(2)
    most = flat.amax(2)
    plain = most == least  # single-coloured images stay
    scale = torch.where(plain, 1.0, 255 / (most - least).clamp(min=1))
    least = torch.where(plain, 0.0, least)
    return ((flat - least[..., None]) * scale[..., None]).clamp(0, 255).to(x.dtype).view(x.shape)


def _equalize(x: Tensor, size: Tensor) -> Tensor:
    values = x.flatten(2).flatten(0, 1).long()
    counts = torch.zeros(len(values), 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, values, torch.ones_like(values))
    last = counts.gather(1, values.amax(1, keepdim=True))  # of the brightest pixels
    step = (values.shape[1] - last) // 255
    table = (counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)
    spread = table.clamp(0, 255).gather(1, values)
    return torch.where(step > 0, spread, values).to(torch.uint8).view(x.shape)


# In torchvision's order. Changing it changes what a seed means.
OPERATIONS = {
    "Identity": Operation(_same),
    "ShearX": Operation(_shear_x, 0, 0.99, True),
    "ShearY": Operation(_shear_y, 0, 0.99, True),
    "TranslateX": Operation(_translate_x, 0, 32, True),
    "TranslateY": Operation(_translate_y, 0, 32, True),
    "Rotate": Operation(_rotate, 0, 135, True),
    "Brightness": Operation(_brightness, 0, 0.99, True),
    "Color": Operation(_colour, 0, 0.99, True),
    "Contrast": Operation(_contrast, 0, 0.99, True),
    "Sharpness": Operation(_sharpness, 0, 0.99, True),
    "Posterize": Operation(_posterize, 8, 2),
    "Solarize": Operation(_solarize, 255, 0),
    "AutoContrast": Operation(_autocontrast),
    "Equalize": Operation(_equalize),
}
