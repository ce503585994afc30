"""Shape that a net is built for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

ImageSize = int | tuple[int, int]  # side of a square, or height and width


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Return height and width in pixels; of JSON they come as a list."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


class Shape(NamedTuple):
    """Shape that a net is built for: its images and its number of classes."""

    channels: int
    image_size: ImageSize
    num_classes: int

    @classmethod
    def of(cls, record: Sequence[Any]) -> "Shape":
        """Read what was written as JSON, where height and width are a list."""
        channels, size, classes = record
        return cls(channels, image_size(*height_and_width(size)), classes)

    @property
    def pixels(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.channels, *height_and_width(self.image_size)


def image_size(height: int, width: int) -> ImageSize:
    """Return one number for a square."""
    return height if height == width else (height, width)
