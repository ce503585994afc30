"""Shape that a net is built for."""

from typing import NamedTuple

ImageSize = int | tuple[int, int]  # side of a square, or height and width


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Return height and width in pixels."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


class Shape(NamedTuple):
    """Shape that a net is built for: its images and its number of classes."""

    channels: int
    image_size: int
    num_classes: int
