"""torch map-style datasets as a data source."""

from typing import Any, Protocol

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from kd.data.base import DataModule, Images, Source
from kd.errors import UserError


class MapStyle(Protocol):
    """Dataset with a length that gives (image, label) by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class TorchDataset(DataModule):
    """Datasets built in Python; their images are read once, without augmentation of their own.

    Args:
        train: gives (image, label). An image is a PIL image, uint8 pixels [C, H, W], or float
            pixels [C, H, W] in [0, 1]. A label is an integer from 0.
        val, test: likewise; None carves that part out of `train`.
        classes: names ordered by label; None uses the numbers.
        keywords: those of `DataModule`.
    """

    def __init__(
        self,
        train: MapStyle,
        val: MapStyle | None = None,
        test: MapStyle | None = None,
        classes: tuple[str, ...] | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.parts = {"train": train, "val": val, "test": test}
        self.names = classes or getattr(train, "classes", None)

    def read(self) -> Source:
        """Read all images of the three datasets as uint8.

        Raises:
            UserError: an image differs from the first in size or channels, or has values outside
                [0, 1].
        """
        read = {
            name: _images(part, name) if part is not None and len(part) else None
            for name, part in self.parts.items()
        }
        train = read["train"]
        if train is None:
            raise UserError("train: needed is a dataset with at least one image")
        count = 1 + max(int(each.labels.max()) for each in read.values() if each)
        names = tuple(self.names or map(str, range(count)))
        return Source(train, read["test"], names, read["val"])


def _images(part: MapStyle, name: str) -> Images:
    pixels = []
    labels = []
    for i in range(len(part)):
        image = part[i][0]
        label = part[i][1]
        pixels.append(_pixels(image, f"{name}[{i}]"))
        labels.append(int(label))
        if pixels[i].shape != pixels[0].shape:
            raise UserError(
                f"{name}[{i}]: found an image {tuple(pixels[i].shape)}, the first is "
                f"{tuple(pixels[0].shape)}; all must have one size"
            )
    return Images(torch.stack(pixels), torch.tensor(labels))


def _pixels(image: Any, where: str) -> Tensor:
    """Convert one image to uint8 [C, H, W]."""
    if isinstance(image, Image):
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    tensor = torch.from_numpy(image) if isinstance(image, np.ndarray) else image
    if not isinstance(tensor, Tensor) or tensor.ndim != 3:
        raise UserError(
            f"{where}: needed is a PIL image or pixels [C, H, W]; found {type(image).__name__}"
        )
    if tensor.dtype == torch.uint8:
        return tensor
    if tensor.min() < 0 or tensor.max() > 1:
        raise UserError(
            f"{where}: found pixels from {tensor.min():.3g} to {tensor.max():.3g}, accepted "
            "are 0 to 1; leave Normalize out, kd normalises itself"
        )
    return (tensor * 255).round().to(torch.uint8)
