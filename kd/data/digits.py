"""scikit-learn's handwritten digits: 1,797 8x8 gray images in 10 classes, inside the package."""

import torch
from sklearn.datasets import load_digits

from kd.data.base import DataModule, Images, Source


class Digits(DataModule):
    """Digits of UCI, "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998), test
    part.
    """

    def read(self) -> Source:
        """Read gray levels 0 to 16 as uint8 0 to 255."""
        digits = load_digits()
        pixels = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
        labels = torch.from_numpy(digits.target).long()
        return Source(Images(pixels, labels), None, tuple(map(str, range(10))))
