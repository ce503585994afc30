"""Shape that a net is built for."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Shape that a net is built for: its images and its number of classes."""

    channels: int
    image_size: int
    num_classes: int
