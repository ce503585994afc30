"""Common corruptions: noise, blur, brightness and compression in five severities.

After Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations". The constants are those of CIFAR-10-C at every image size, so they are milder than
ImageNet-C's on large images. The blur width is ours: in pixels of a 32-pixel image, scaled with the
side above that.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Pictures = NDArray[np.float64]  # [B, C, H, W] in [0, 1]

# Standard deviation of Gaussian noise, relative to the full range
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
# Standard deviation of a Gaussian blur, in pixels of an image of side 32
BLUR = (
    0.4,
    0.6,
    0.7,
    0.8,
    1.0,
)
BRIGHTNESS = (0.05, 0.10, 0.15, 0.20, 0.30)  # added to the value in HSV
JPEG = (80, 65, 58, 50, 40)  # Pillow's quality


def corrupt(
    pixels: NDArray[np.uint8], index: NDArray[np.int64], name: str, severity: int, seed: int = 0
) -> NDArray[np.uint8]:
    """Corrupt images. The result for an image does not depend on the rest of the batch.

    Args:
        pixels: uint8 [B, C, H, W]; 1 channel (gray) or 3 (RGB).
        index: int64 [B], positions of the images in their data set; seeds the noise with `seed`.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.

    Returns:
        uint8 [B, C, H, W].
    """
    pictures = CORRUPTIONS[name](pixels / 255.0, index, severity - 1, seed)
    found: NDArray[np.uint8] = (pictures.clip(0, 1) * 255).round().astype(np.uint8)
    return found


def _noise(pictures: Pictures, index: NDArray[np.int64], level: int, seed: int) -> Pictures:
    # Same draws at each severity, so severities differ in strength only
    shape = pictures.shape[1:]
    drawn = [np.random.default_rng([seed, int(i)]).standard_normal(shape) for i in index]
    return pictures + NOISE[level] * np.stack(drawn)


def _blur(pictures: Pictures, index: NDArray[np.int64], level: int, seed: int) -> Pictures:
    sigma = BLUR[level] * max(1.0, pictures.shape[-1] / 32)
    blurred: Pictures = gaussian_filter(pictures, sigma=(0, 0, sigma, sigma), mode="nearest")
    return blurred


def _brightness(pictures: Pictures, index: NDArray[np.int64], level: int, seed: int) -> Pictures:
    # V of HSV; equal growth of all channels keeps hue and saturation
    value = pictures.max(1, keepdims=True)
    lighter = (value + BRIGHTNESS[level]).clip(max=1)
    found: Pictures = np.where(
        value > 0, pictures * lighter / np.where(value > 0, value, 1), lighter
    )
    return found


def _jpeg(pictures: Pictures, index: NDArray[np.int64], level: int, seed: int) -> Pictures:
    return np.stack([_compress(picture, JPEG[level]) for picture in pictures])


def _compress(picture: Pictures, quality: int) -> Pictures:
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
