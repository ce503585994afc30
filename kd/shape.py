"""What a net is built for."""

from typing import NamedTuple


class Shape(NamedTuple):
    """What a net is built for: the images it takes and the classes it tells apart."""

    channels: int
    image_size: int
    num_classes: int
