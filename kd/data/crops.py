"""Random crops of the originals, read at the images' size."""

import math

import numpy as np
import torch
from torch import Tensor

from kd.data.draws import Draw, uniform
from kd.data.images import Images

ASPECT = (3 / 4, 4 / 3)  # width to height of random crops
ATTEMPTS = 10  # to draw one that fits
PURPOSES = torch.tensor([Draw.AREA, Draw.RATIO, Draw.TOP, Draw.LEFT])[:, None, None] + (
    torch.arange(ATTEMPTS)[:, None] << 8
)


def read_pixels(images: Images, index: Tensor, *, seed: int, view: int, smallest: float) -> Tensor:
    """Read what views are made of: the images, or random crops of their originals.

    Args:
        index: of the images, int64 [B], on the CPU; from the number of images on in further rounds.
        smallest: area share of random crops; 0 for none.

    Returns:
        uint8 [B, C, H, W].
    """
    where = index % len(images)
    if not smallest:
        return images.pixels[where]
    sizes = images.pixels.original_sizes[where]
    return images.pixels.crop(where, crop_boxes(sizes, index, seed, view, smallest))


def crop_boxes(sizes: Tensor, index: Tensor, seed: int, view: int, smallest: float) -> Tensor:
    """Draw random crops as torchvision's RandomResizedCrop does.

    It draws area and aspect ratio up to ten times until the crop fits; then it takes the centre.
    All ten are drawn at once, as many small operations take longer.

    Args:
        sizes: height and width of the originals in pixels, int [B, 2].
        index: of the images, int64 [B].
        smallest: share of the area.

    Returns:
        top, left, height and width, int64 [B, 4].
    """
    height, width = sizes.numpy().astype(np.float64).T
    least, most = ASPECT
    high = np.minimum(height, np.rint(width / least))
    wide = np.minimum(width, np.rint(height * most))
    middle = (np.floor((height - high) / 2), np.floor((width - wide) / 2), high, wide)
    drawn = uniform(seed, view, index, PURPOSES).double()  # [4, ATTEMPTS, B]
    area, _, top, left = drawn.numpy()
    area = height * width * (smallest + (1 - smallest) * area)
    # By torch, as numpy's exp may differ in the last bit
    aspect = (math.log(least) + math.log(most / least) * drawn[1]).exp().numpy()
    high = np.rint(np.sqrt(area / aspect))
    wide = np.rint(np.sqrt(area * aspect))
    fits = (high > 0) & (high <= height) & (wide > 0) & (wide <= width)
    corner = (np.floor(top * (height - high + 1)), np.floor(left * (width - wide + 1)))
    first = np.stack((*corner, high, wide), 2)[fits.argmax(0), np.arange(len(index))]
    chosen = np.where(fits.any(0)[:, None], first, np.stack(middle, 1))
    return torch.from_numpy(chosen.astype(np.int64))
