"""Common corruptions: what noise, blur, light and compression do to a picture, in five severities.

After Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations". The constants are those of their CIFAR-10-C at every image size, so on large
pictures they are milder than ImageNet-C's. One is ours: the blur's width is in pixels of a 32-pixel
picture, and grows with the side above that.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Pictures = NDArray[np.float64]  # [B, C, H, W] in [0, 1]

NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation of Gaussian noise, of the full range
BLUR = (
    0.4,
    0.6,
    0.7,
    0.8,
    1.0,
)  # standard deviation of a Gaussian blur, in pixels of a picture of side 32
BRIGHTNESS = (0.05, 0.10, 0.15, 0.20, 0.30)  # added to the value in HSV
JPEG = (80, 65, 58, 50, 40)  # Pillow's quality


def corrupt(
    pixels: NDArray[np.uint8], index: NDArray[np.int64], name: str, severity: int, seed: int = 0
) -> NDArray[np.uint8]:
    """Pictures as a corruption leaves them. An image's result depends on nothing else in the batch.

    Args:
        pixels: uint8 [B, C, H, W]; 1 channel (gray) or 3 (RGB).
        index: [B], the images' numbers in their data set; the noise is drawn from (seed, number).
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.

    Returns:
        uint8 [B, C, H, W].
    """
    pictures = CORRUPTIONS[name](pixels / 255.0, index, severity - 1, seed)
    found: NDArray[np.uint8] = (pictures.clip(0, 1) * 255).round().astype(np.uint8)
    return found


def _noise(pictures: Pictures, index: NDArray[np.int64], level: int, seed: int) -> Pictures:
    shape = pictures.shape[
        1:
    ]  # the same draws at each severity, so that severities differ by their strength alone
    drawn = [np.random.default_rng([seed, int(i)]).standard_normal(shape) for i in index]
    return pictures + NOISE[level] * np.stack(drawn)


def _blur(pictures: Pictures, index: NDArray[np.int64], level: int, seed: int) -> Pictures:
    sigma = BLUR[level] * max(1.0, pictures.shape[-1] / 32)
    blurred: Pictures = gaussian_filter(pictures, sigma=(0, 0, sigma, sigma), mode="nearest")
    return blurred


def _brightness(pictures: Pictures, index: NDArray[np.int64], level: int, seed: int) -> Pictures:
    value = pictures.max(
        1, keepdims=True
    )  # V of HSV; hue and saturation stay when all channels grow alike
    lighter = (value + BRIGHTNESS[level]).clip(max=1)
    found: Pictures = np.where(
        value > 0, pictures * lighter / np.where(value > 0, value, 1), lighter
    )
    return found


def _jpeg(pictures: Pictures, index: NDArray[np.int64], level: int, seed: int) -> Pictures:
    return np.stack([_compressed(picture, JPEG[level]) for picture in pictures])


def _compressed(picture: Pictures, quality: int) -> Pictures:
    levels = (picture * 255).round().astype(np.uint8)
    image = Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    back = np.asarray(Image.open(file)) / 255.0
    return back[None] if back.ndim == 2 else back.transpose(2, 0, 1)


CORRUPTIONS: dict[str, Callable[[Pictures, NDArray[np.int64], int, int], Pictures]] = {
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "jpeg": _jpeg,
}
