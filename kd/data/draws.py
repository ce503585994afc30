"""Random numbers of views: a hash of (seed, view, image index, purpose), without any state.

A counter-based generator: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from enum import IntEnum, auto
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MASK = 0xFFFFFFFF


class Draw(IntEnum):
    """Purpose of a random number. The values are part of what a seed means: never change one."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count  # from 0

    CROP_TOP = auto()
    CROP_LEFT = auto()
    FLIP = auto()
    ANGLE = auto()
    AREA = auto()
    RATIO = auto()
    TOP = auto()
    LEFT = auto()
    BRIGHTNESS = auto()
    CONTRAST = auto()
    ERASE = auto()
    ERASE_AREA = auto()
    ERASE_RATIO = auto()
    ERASE_TOP = auto()
    ERASE_LEFT = auto()
    PARTNER = auto()
    MIX_KIND = auto()
    MIX_RATIO = auto()
    MIX_TOP = auto()
    MIX_LEFT = auto()
    VERTICAL_FLIP = auto()
    OPERATION = auto()
    STRENGTH = auto()
    SIGN = auto()
    SATURATION = auto()
    HUE = auto()
    BLUR = auto()


Numbers = TypeVar("Numbers", int, NDArray[np.int64], Tensor)


def _mix(x: Numbers) -> Numbers:
    """Hash 32-bit integers ("lowbias32", Wellons 2018): int64 values in [0, 2^32), or one int."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def uniform(seed: int, view: int, index: Tensor, draw: int | Tensor) -> Tensor:
    """Draw one number per image, uniform in [0, 1), float32 [B].

    Args:
        index: image indices, int64 [B].
        draw: purpose of the number within the view; int64 [..., 1] for several, giving [..., B].
    """
    parts: list[Any] = [seed >> 32, view, draw, index]
    if on_cpu := index.device.type == "cpu":  # numpy takes a third of torch's time for so few
        parts = [part.numpy() if isinstance(part, Tensor) else part for part in parts]
    h: Any = seed & MASK  # plain Python until arrays come in: one number for all
    for part in parts[:3]:
        h = _mix(h ^ (part & MASK))
        h = (h + 0x9E3779B9) & MASK  # so that a hash of zeros is not zero
    mixed = _mix(_mix(h ^ (parts[3] & MASK)) ^ h) >> 8
    found: Tensor = torch.from_numpy(mixed) if on_cpu else mixed
    return found.to(torch.float32) / (1 << 24)
