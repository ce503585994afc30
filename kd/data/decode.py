"""One image file of any kind a person would have, as pixels of the size asked for."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

ENDINGS = frozenset(
    (
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)

# Larger pictures than this are refused by us with a message, so Pillow need not warn of them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class DecodeError(Exception):
    """Why a file gives no image, in a few words."""


def decode(path: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """Decode a file and stretch it to a square; nothing is cut off.

    The EXIF orientation is applied; what is transparent becomes white; 16-bit gray levels are divided by 257; of an
    animation or a file of several pages the first picture counts. Resizing is bilinear with antialiasing.

    Args:
        size: height and width of the result, in pixels.
        channels: 3 for RGB, 1 for gray.

    Returns:
        uint8 [channels, size, size].

    Raises:
        DecodeError: the file cannot be read, is damaged, is no image or is too large; says which.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
                raise DecodeError(
                    f"{width}x{height} pixels are too many, accepted are up to {Image.MAX_IMAGE_PIXELS}"
                )
            upright = ImageOps.exif_transpose(image)
            flat = _flatten(upright).convert("RGB" if channels == 3 else "L")
            pixels = np.asarray(flat.resize((size, size), Image.Resampling.BILINEAR))
    except DecodeError:
        raise
    except Image.DecompressionBombError:
        raise DecodeError(f"too many pixels, accepted are up to {Image.MAX_IMAGE_PIXELS}") from None
    except UnidentifiedImageError:
        raise DecodeError(
            "empty file" if path.stat().st_size == 0 else "not an image, or of an unknown kind"
        ) from None
    except OSError as error:
        raise DecodeError(error.strerror or str(error)) from error
    except Exception as error:  # what a decoder raises on a damaged file is written down nowhere
        raise DecodeError(f"{type(error).__name__}: {error}") from error
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _flatten(image: Image.Image) -> Image.Image:
    """Without transparency, and with 8 bits a channel."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 0xFFFF:
            raise DecodeError(
                f"gray levels from {levels.min()} to {levels.max()}, accepted are 0 to 65535"
            )
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise DecodeError("floating-point gray levels; accepted are 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image
