"""The images of CIFAR-10 that all comparisons use."""

from typing import Any

import torch

from kd.data.base import Source
from kd.data.cifar10 import CIFAR10


class PartOfCIFAR10(CIFAR10):
    """The first images: `count` to train on, a fifth as many to validate; 1,000 of the test set."""

    def __init__(self, root: str = "data", count: int = 500, **options: Any) -> None:
        super().__init__(root, **options)
        self.count = count

    def read(self) -> Source:
        whole = super().read()
        train, val, test = parts_of(self.count)
        return Source(
            whole.train.at(train), whole.test.at(test), whole.classes, whole.train.at(val)
        )


def parts_of(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions of the images to train on, to validate and to test; the first two in the training
    files.
    """
    return torch.arange(count), torch.arange(count, count + count // 5), torch.arange(1000)
