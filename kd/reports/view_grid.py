"""Grid of training images and their views in the first epochs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.base import DataModule
from kd.data.views import to_unit, view_number, views_of

IMAGES = 8
VIEWS = 7
SIDE = 64  # approximate size in pixels that small images are enlarged to
GAP = 2  # pixels between images


def view_grid(data: DataModule, seed: int) -> Tensor:
    """Draw eight training images, each with its views in the first seven epochs.

    Args:
        seed: of the run, whose training uses the same views.

    Returns:
        float32 [3, height, width] in [0, 1].
    """
    train = data.split.train
    index = torch.linspace(0, len(train) - 1, min(IMAGES, len(train))).long()
    pixels = train.pixels[index]
    pool = train if data.augment.mixes else None
    numbers = [view_number(epoch, data.views) for epoch in range(VIEWS)]
    views = [
        views_of(train, index, seed=seed, view=v, augment=data.augment, pool=pool) for v in numbers
    ]
    cells = torch.stack([to_unit(pixels), *views], 1)
    count, across, *_, width = cells.shape
    cells = F.interpolate(cells.flatten(0, 1), scale_factor=max(1, SIDE // width))
    cells = F.pad(cells, (GAP, 0, GAP, 0))
    cells = cells.view(count, across, *cells.shape[1:]).permute(2, 0, 3, 1, 4)
    # Instead of torchvision's make_grid, since torchvision takes three seconds to import.
    return F.pad(cells.flatten(3).flatten(1, 2), (0, GAP, 0, GAP)).expand(3, -1, -1)
