"""MNIST (LeCun, Cortes & Burges 1998): 70,000 handwritten digits, 28x28 pixels, 10 classes."""

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
        """Read the images, with classes called 0 to 9 where torchvision has `0 - zero`."""
        return replace(super().read(), classes=tuple(map(str, range(10))))
