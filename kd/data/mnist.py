"""MNIST (LeCun, Cortes & Burges 1998): 70,000 gray images of 28x28 pixels, handwritten digits in 10
classes.
"""

from dataclasses import replace

from torchvision import datasets

from kd.data.images import Source
from kd.data.torchvision_reader import IDX


class MNIST(IDX):
    """The official 60,000 training and 10,000 test images."""

    reader = datasets.MNIST
    folder = "MNIST/raw"
    origin = f"{reader.mirrors[0]} (unzipped)"

    def read(self) -> Source:
        """Read them, with classes called 0 to 9 where torchvision has `0 - zero`."""
        return replace(super().read(), classes=tuple(map(str, range(10))))
