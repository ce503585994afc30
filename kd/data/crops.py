"""Random crops of the originals, read at the images' size."""

import math

import torch
from torch import Tensor

from kd.data.draws import Draw, uniform
from kd.data.images import Images

ASPECT = (3 / 4, 4 / 3)  # width to height of random crops
ATTEMPTS = 10  # to draw one that fits


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
    height, width = sizes.double().unbind(1)
    least, most = ASPECT
    high = torch.minimum(height, (width / least).round())
    wide = torch.minimum(width, (height * most).round())
    middle = (((height - high) / 2).floor(), ((width - wide) / 2).floor(), high, wide)
    purposes = torch.tensor([Draw.AREA, Draw.RATIO, Draw.TOP, Draw.LEFT])[:, None, None]
    purposes = purposes + (torch.arange(ATTEMPTS) << 8)[:, None]
    area, ratio, top, left = uniform(seed, view, index, purposes).double()  # [ATTEMPTS, B] each
    area = height * width * (smallest + (1 - smallest) * area)
    aspect = (math.log(least) + math.log(most / least) * ratio).exp()
    high = (area / aspect).sqrt().round()
    wide = (area * aspect).sqrt().round()
    fits = (high > 0) & (high <= height) & (wide > 0) & (wide <= width)
    corner = ((top * (height - high + 1)).floor(), (left * (width - wide + 1)).floor())
    drawn = torch.stack((*corner, high, wide), 2)
    first = drawn[fits.int().argmax(0), torch.arange(len(index))]
    return torch.where(fits.any(0)[:, None], first, torch.stack(middle, 1)).long()
