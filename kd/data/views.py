"""Views: image `index` as augmented in epoch `view`, drawn for whole batches on the device.

Random crops come first, from the originals, where the images are read (`kd.data.crops`); the rest
is in `make_views`.

A view is the same for any batch, worker, rank or resume point (`kd.data.draws`). For the same
reason no floating-point sum runs over a batch or an image: its order would depend on the batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from scipy.special import betaincinv
from torch import Tensor

from kd.config.checking import validate
from kd.data.colour import blur, saturate, turn_hue
from kd.data.crops import read_pixels
from kd.data.draws import Draw, uniform
from kd.data.images import Images
from kd.data.trivial import trivial_augment
from kd.shape import ImageSize, height_and_width

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Augment(BaseModel):
    """Augmentation of a view, in this order. With everything off a view is the image itself.

    Attributes:
        resized_crop: smallest area share of a random crop of the original, which is resized to the
            image's size, at aspect ratios 3:4 to 4:3 (Szegedy et al. 2015; torchvision's
            RandomResizedCrop); 0 for none.
        crop_padding: padding on each side before a random crop to the image's size: pixels, or
            below 1 a share of the side.
        pad_with: zeros (black), or the image mirrored at its edge.
        horizontal_flip: mirror left to right with probability 1/2. `alternating` mirrors every
            other view, from a random first one, so that two views in a row show both sides (Jordan
            2024).
        vertical_flip: mirror top to bottom with probability 1/2.
        trivial: one of 14 operations at one of 31 strengths, such as shear, rotation, posterize or
            contrast (TrivialAugment, Müller & Hutter 2021); see `kd.data.trivial`.
        rotation: up to this many degrees to either side.
        brightness: up to plus or minus this is added to all pixels, in units of the full range.
        contrast: distances from the image's mean are scaled by 1 plus or minus up to this.
        saturation: distances from gray are scaled by 1 plus or minus up to this.
        hue: shift by up to this share of the colour circle to either side; 0.5 is any colour.
        blur: largest standard deviation of a Gaussian, in pixels; each image gets one from 0 to it.
        erase: probability that a rectangle of 2 to 20 % of the area becomes the image's mean (Zhong
            et al. 2017).
        mixup: a of the Beta(a, a) distribution of the mixing ratio of two images (Zhang et al.
            2017); 0 for none.
        cutmix: the same for the area of a rectangle taken from another image (Yun et al. 2019); 0
            for none. With both on, each image gets one of the two at even odds.
    """

    # Defaults are validated too: 0 and 0.0 then give one key in the store.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)

    resized_crop: Share = 0
    crop_padding: NonNegativeInt | Annotated[float, Field(ge=0, lt=1)] = 0
    pad_with: Literal["zeros", "reflect"] = "zeros"
    horizontal_flip: bool | Literal["alternating"] = False
    vertical_flip: bool = False
    trivial: bool = False
    rotation: Annotated[float, Field(ge=0, le=180)] = 0
    brightness: Share = 0
    contrast: Share = 0
    saturation: Share = 0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0
    blur: Annotated[float, Field(ge=0, le=16)] = 0
    erase: Share = 0
    mixup: NonNegative = 0
    cutmix: NonNegative = 0

    @property
    def mixes(self) -> bool:
        """Whether views combine two images, so that labels are probabilities."""
        return self.mixup > 0 or self.cutmix > 0


def make_augment(keywords: Mapping[str, Any], where: str = "data.augment") -> Augment:
    """Build the augmentation that a config node describes.

    Args:
        where: its key, for messages.

    Raises:
        UserError: unknown key, or value out of range.
    """
    return validate(Augment, keywords, f"{where}.")


def views_of(
    images: Images,
    index: Tensor,
    *,
    seed: int,
    view: int,
    augment: Augment,
    pool: Images | None = None,
    device: torch.device | None = None,
    drawn_at: tuple[int, int] | None = None,
) -> Tensor:
    """Read images and augment them: `read_pixels`, then `make_views`.

    Args:
        index: of the images, int64 [B], on the CPU.
        device: that augments.
        drawn_at: see `make_views`.

    Returns:
        float32 [B, C, H, W] in [0, 1].
    """
    smallest = augment.resized_crop
    pixels = read_pixels(images, index, seed=seed, view=view, smallest=smallest)
    here = index.to(device or index.device)
    return make_views(
        pixels.to(here.device),
        here,
        seed=seed,
        view=view,
        augment=augment,
        pool=pool,
        drawn_at=drawn_at,
    )


def make_views(
    pixels: Tensor,
    index: Tensor,
    *,
    seed: int,
    view: int,
    augment: Augment,
    pool: Images | None = None,
    drawn_at: tuple[int, int] | None = None,
) -> Tensor:
    """Augment a batch as it was read.

    Args:
        pixels: uint8 [B, C, H, W], from `read_pixels`.
        index: indices of the images in their training set, int64 [B], on the same device.
        view: number of the view, >= 0; the epoch, unless `data.views` makes epochs share views.
        pool: training set, source of the second image of a mixed view; needed if `augment.mixes`.
        drawn_at: height and width at which the view was drawn, where another net gets the same view
            at another size: what is so many pixels there is the same share of the side here. None:
            these images' own.

    Returns:
        float32 [B, C, H, W] in [0, 1].
    """
    drawn_at = drawn_at or (pixels.shape[2], pixels.shape[3])
    x = _single(pixels, index, seed, view, augment, drawn_at)
    if not augment.mixes:
        return x
    assert pool is not None
    partner = partners(index, seed, view, len(pool))
    smallest = augment.resized_crop
    other = read_pixels(pool, partner.cpu(), seed=seed, view=view, smallest=smallest).to(x.device)
    other = _single(other, partner, seed, view, augment, drawn_at)
    own = _enlarge(_own_share(index, seed, view, augment, *drawn_at), x.shape[2:])
    return (x * own + other * (1 - own)).clamp(0, 1)


def mixed_target(
    target: Tensor,
    index: Tensor,
    classes: int,
    size: ImageSize,
    *,
    seed: int,
    view: int,
    augment: Augment,
    pool: Images,
) -> Tensor:
    """Compute the labels of mixed views: both classes, weighted by their share of the view.

    Args:
        target: int64 [B], -1 if unlabelled.
        index: indices of the images, int64 [B].
        size: of the images, in pixels.

    Returns:
        float32 [B, classes]; rows sum to 1, or are 0 where either image is unlabelled.
    """
    second = pool.labels[partners(index, seed, view, len(pool)).cpu()].to(target.device)
    own = (
        _own_share(index, seed, view, augment, *height_and_width(size))
        .double()
        .mean((1, 2, 3))
        .float()[:, None]
    )
    first, other = (F.one_hot(labels.clamp(min=0), classes) for labels in (target, second))
    return (first * own + other * (1 - own)) * ((target >= 0) & (second >= 0))[:, None]


def partners(index: Tensor, seed: int, view: int, size: int) -> Tensor:
    """Draw for images int64 [B] their partners in mixing: int64 [B] in [0, size)."""
    return (uniform(seed, view, index, Draw.PARTNER).double() * size).long()


def to_unit(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels [B, C, H, W] to float32 in [0, 1]."""
    return pixels.to(torch.float32, copy=True).div_(255)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Compute (x - mean) / std per channel; x [B, C, H, W], mean and std in the same unit."""
    shift = x.new_tensor(mean)
    scale = x.new_tensor(std)
    if x.is_contiguous():
        return (x - shift[:, None, None]) / scale[:, None, None]
    # Whole rows: channels-last scatters a channel's numbers, and rows take a quarter of the CPU
    # time.
    channels = x.shape[1]
    width = x.shape[3]
    rows = (x.permute(0, 2, 3, 1).flatten(2) - shift.repeat(width)) / scale.repeat(width)
    return rows.view(*rows.shape[:2], width, channels).permute(0, 3, 1, 2)


def _single(
    pixels: Tensor,
    index: Tensor,
    seed: int,
    view: int,
    augment: Augment,
    drawn_at: tuple[int, int],
) -> Tensor:
    """Augment each image by itself: uint8 [B, C, H, W] to float32 in [0, 1]."""

    def draw(purpose: Draw) -> Tensor:  # float64 [B]
        return uniform(seed, view, index, purpose).double()

    x = pixels
    mirrored = _mirror_mask(index, seed, view, augment.horizontal_flip)
    if augment.crop_padding:
        x = _crop(x, draw(Draw.CROP_TOP), draw(Draw.CROP_LEFT), mirrored, augment, drawn_at)
    elif augment.horizontal_flip:
        x = _choose(mirrored, x.flip(3), x)
    if augment.vertical_flip:
        x = _choose(draw(Draw.VERTICAL_FLIP) < 0.5, x.flip(2), x)
    if augment.trivial:
        draws = (draw(p) for p in (Draw.OPERATION, Draw.STRENGTH, Draw.SIGN))
        x = trivial_augment(x, *draws, drawn_at=drawn_at)
    x = to_unit(x)
    if augment.rotation:
        x = _rotate(x, math.radians(augment.rotation) * (2 * draw(Draw.ANGLE) - 1))
    return _tone(x, pixels, draw, augment, drawn_at)


def _tone(
    x: Tensor,
    pixels: Tensor,
    draw: Callable[[Draw], Tensor],
    augment: Augment,
    drawn_at: tuple[int, int],
) -> Tensor:
    """Apply brightness, contrast, colour, blur and erasing; float32 in [0, 1].

    Args:
        pixels: the unaugmented images, for their means.
        draw: gives each image's number for a purpose, float64 [B] in [0, 1).
    """
    if augment.contrast or augment.brightness:
        mean = _mean(pixels)
        stretch = 1 + augment.contrast * (2 * draw(Draw.CONTRAST) - 1)
        shift = augment.brightness * (2 * draw(Draw.BRIGHTNESS) - 1)
        x = ((x - mean) * _each(stretch) + (mean + _each(shift))).clamp(0, 1)
    if augment.saturation:
        x = saturate(x, 1 + augment.saturation * (2 * draw(Draw.SATURATION) - 1))
    if augment.hue:
        x = turn_hue(x, augment.hue * (2 * draw(Draw.HUE) - 1))
    if augment.blur:
        most = augment.blur * x.shape[2] / drawn_at[0]
        radius = min(math.ceil(3 * most), *(side - 1 for side in x.shape[2:]))
        sigma = (most * draw(Draw.BLUR)).clamp(min=0.05)  # has no effect
        x = blur(x, sigma, radius)
    if augment.erase:
        area = 0.02 + 0.18 * draw(Draw.ERASE_AREA)
        hole = _rectangle(
            area, draw(Draw.ERASE_RATIO), draw(Draw.ERASE_TOP), draw(Draw.ERASE_LEFT), *drawn_at
        )
        hole = _enlarge(hole, x.shape[2:])
        x = torch.where(hole & _each(draw(Draw.ERASE) < augment.erase), _mean(pixels), x)
    return x


def _mean(pixels: Tensor) -> Tensor:
    """Compute the mean of each image: uint8 [B, C, H, W] -> float32 [B, 1, 1, 1] in [0, 1]."""
    # An integer sum is the same in any order.
    total = pixels.sum((1, 2, 3), dtype=torch.int64).double()
    return _each(total / (255 * pixels[0].numel()))


def _mirror_mask(index: Tensor, seed: int, view: int, flip: bool | str) -> Tensor:
    """Choose the images that are mirrored in this view, bool [B]."""
    if not flip:
        return torch.zeros_like(index, dtype=torch.bool)
    if flip == "alternating":
        return (uniform(seed, 0, index, Draw.FLIP) < 0.5) ^ (view % 2 == 1)
    return uniform(seed, view, index, Draw.FLIP) < 0.5


def _choose(first: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Choose each image from one of two batches, uint8 [B, C, H, W].

    Args:
        first: which are of `one`, bool [B].
    """
    # By bits, since torch.where takes ten times as long for uint8 on the CPU
    return other ^ ((one ^ other) & -first.to(torch.uint8)[:, None, None, None])


def _each(per_image: Tensor) -> Tensor:
    """Reshape one number per image [B] for pixels [B, C, H, W]; float64 becomes float32."""
    return (per_image.float() if per_image.is_floating_point() else per_image)[:, None, None, None]


def _enlarge(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Bring masks [B, 1, h, w] to height and width `size`, each pixel from the nearest."""
    if list(masks.shape[2:]) == list(size):
        return masks
    rows, columns = (
        ((torch.arange(new, device=masks.device) + 0.5) * old / new).long()
        for new, old in zip(size, masks.shape[2:], strict=True)
    )
    return masks[:, :, rows][:, :, :, columns]


def _crop(
    pixels: Tensor,
    u: Tensor,
    v: Tensor,
    mirrored: Tensor,
    augment: Augment,
    drawn_at: tuple[int, int],
) -> Tensor:
    """Pad by `crop_padding`, crop [H, W] at a random place, mirror; per image, uint8 in and out."""
    channels, height, width = pixels.shape[1:]
    asked = augment.crop_padding
    steps = asked if isinstance(asked, int) else round(asked * drawn_at[1])
    pad = math.ceil(steps * max(height / drawn_at[0], width / drawn_at[1]))
    top, left = (
        pad + (((draw * (2 * steps + 1)).floor() - steps) * side / of).round().long()
        for draw, side, of in ((u, height, drawn_at[0]), (v, width, drawn_at[1]))
    )
    if augment.pad_with == "reflect":  # it has no integer kernel
        padded = (
            F.pad(pixels.float(), (pad,) * 4, mode="reflect").to(torch.uint8).permute(0, 2, 3, 1)
        )
    else:
        padded = F.pad(pixels.permute(0, 2, 3, 1), (0, 0, *(pad,) * 4))
    rows = torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device)
    rows, columns = (
        top[:, None] + rows,
        left[:, None] + torch.where(mirrored[:, None], width - 1 - columns, columns),
    )
    image = torch.arange(len(pixels), device=pixels.device)[:, None]
    place = ((image * (height + 2 * pad) + rows) * (width + 2 * pad))[:, :, None] + columns[
        :, None, :
    ]
    # One index per pixel with all channels takes half the time of one index per dimension.
    cut = padded.reshape(-1, channels).index_select(0, place.flatten())
    return cut.view(-1, height, width, channels).permute(0, 3, 1, 2)


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate each image by an angle in radians, float64 [B]; black beyond the edge."""
    cosine = turn.cos()[:, None, None]
    sine = turn.sin()[:, None, None]
    # Coordinates in [-1, 1]. Plain float64 products: the last bit of a matrix product depends on
    # the batch.
    height, width = x.shape[2:]
    rows = ((2 * torch.arange(height, device=x.device).double() + 1) / height - 1)[None, :, None]
    columns = ((2 * torch.arange(width, device=x.device).double() + 1) / width - 1)[None, None, :]
    to_x = columns * cosine - rows * sine * (height / width)
    to_y = columns * sine * (width / height) + rows * cosine
    grid = torch.stack([to_x, to_y], dim=3).float()
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp(
        0, 1
    )


def view_number(epoch: int, cycle: int | None) -> int:
    """Return the view of an epoch, both counted from 0; with a cycle of V they repeat after V."""
    return epoch if cycle is None else epoch % cycle


def _rectangle(
    area: Tensor, ratio: Tensor, top: Tensor, left: Tensor, height: int, width: int
) -> Tensor:
    """Place a rectangle of this area share, bool [B, 1, H, W]; the others are draws in [0, 1)."""
    aspect = 3 ** (ratio - 0.5)  # aspect ratios 1:sqrt(3) to sqrt(3):1
    high = ((area.sqrt() * aspect).clamp(max=1) * height).round()
    wide = ((area.sqrt() / aspect).clamp(max=1) * width).round()
    first_row = (top * (height - high + 1)).floor()
    first_column = (left * (width - wide + 1)).floor()
    rows = torch.arange(height, device=area.device)[None, :]
    columns = torch.arange(width, device=area.device)[None, :]
    in_rows = (rows >= first_row[:, None]) & (rows < (first_row + high)[:, None])
    in_columns = (columns >= first_column[:, None]) & (columns < (first_column + wide)[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def _own_share(
    index: Tensor, seed: int, view: int, augment: Augment, height: int, width: int
) -> Tensor:
    """Return the first image's share of each pixel of a mixed view, float32 [B, 1, H, W]."""
    ratio, kind, top, left = (
        uniform(seed, view, index, purpose).double()
        for purpose in (Draw.MIX_RATIO, Draw.MIX_KIND, Draw.MIX_TOP, Draw.MIX_LEFT)
    )
    even = torch.full((len(index), 1, height, width), 1.0, device=index.device)
    blended = even * _each(_beta(ratio, augment.mixup)) if augment.mixup else even
    if not augment.cutmix:
        return blended
    hole = _rectangle(
        1 - _beta(ratio, augment.cutmix), torch.full_like(ratio, 0.5), top, left, height, width
    )
    cut = torch.where(hole, 0.0, even)
    return torch.where(_each(kind < 0.5), blended, cut) if augment.mixup else cut


def _beta(u: Tensor, a: float) -> Tensor:
    """Map uniform numbers to Beta(a, a) through a table of its quantiles; float64 [B]."""
    table = _quantiles(a).to(u.device)
    place = u * (len(table) - 1)
    below = place.long()
    return table[below] + (place - below) * (table[below + 1] - table[below])


@cache
def _quantiles(a: float) -> Tensor:
    return torch.from_numpy(
        betaincinv(a, a, torch.linspace(0, 1, 4097, dtype=torch.float64).numpy())
    )
