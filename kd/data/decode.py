"""Decoding of one image file of any common kind to pixels of a given size."""

import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from pydantic import Field

# Kinds that Pillow recognises but cannot decode alone; EPS would start another program,
# Ghostscript.
NOT_DECODED = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))
FULL = 0xFFFF  # largest 16-bit level

# We refuse larger images with a message, so Pillow need not warn.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_now = threading.local()  # `remarks` of the file that a thread decodes


Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "box"]


class DecodeError(Exception):
    """Reason why a file gives no image, in a few words."""


@dataclass(frozen=True)
class Reading:
    """How pixels are read from a file.

    Attributes:
        bit_depth: significant bits of 16-bit gray levels: level 2^bit_depth - 1 becomes white. 12
            for most X-ray detectors.
        resize: how an image becomes a square. `stretch` ignores its aspect ratio. `crop` scales its
            shorter side to `image_size / crop_ratio`, rounded down, and takes the centre, as the
            evaluation of torchvision's and timm's nets does. `pad` scales its longer side to
            `image_size` and adds black on both sides.
        crop_ratio: side of the crop relative to the shorter side, in (0, 1]; 0.875 is usual for
            ImageNet. Below 1 only with `crop`.
        interpolation: of the resizing, with antialiasing.
        draft: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, as long as that is at least
            twice the result's. Several times faster; pixels differ by a few levels.
    """

    bit_depth: Annotated[int, Field(ge=9, le=16)] = 16
    resize: Resize = "stretch"
    crop_ratio: Annotated[float, Field(gt=0, le=1)] = 1
    interpolation: Interpolation = "bilinear"
    draft: bool = False


AS_STORED = Reading()


@dataclass
class Remarks:
    """Remarks on a decoded file.

    Attributes:
        warnings: Pillow's; collected inside `remarking`.
        brightest: highest level of a 16-bit gray image, 0 to 65535; None for any other.
    """

    warnings: list[str] = field(default_factory=list)
    brightest: int | None = None


def threads() -> int:
    """Return the number of decoding threads: Pillow releases the GIL, so one per core."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def endings() -> frozenset[str]:
    """Return the suffixes that this Pillow can open, in lower case with their dot."""
    kinds = Image.registered_extensions()  # MPO files are opened as JPEG
    return frozenset(
        suffix
        for suffix, kind in kinds.items()
        if (kind in Image.OPEN or kind == "MPO") and kind not in NOT_DECODED
    )


@contextmanager
def remarking() -> Iterator[None]:
    """Route Pillow's warnings to the `Remarks` of their file. One thread opens it around the
    others.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"PIL\b")
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            remarks: Remarks | None = getattr(_now, "remarks", None)
            if remarks is None:
                before(message, category, *where, **more)
            elif not issubclass(category, Image.DecompressionBombWarning):
                remarks.warnings.append(" ".join(str(message).split()))

        warnings.showwarning = show
        yield


def decode(
    path: Path,
    size: int,
    channels: int,
    reading: Reading = AS_STORED,
    remarks: Remarks | None = None,
) -> NDArray[np.uint8]:
    """Decode a file to a square image.

    The EXIF orientation is applied. Transparent pixels become white. 16-bit gray levels are divided
    by 257, or by less if `bit_depth` is smaller. The first picture of an animation or multi-page
    file counts.

    Args:
        size: height and width of the result, in pixels.
        channels: 3 for RGB, 1 for gray.
        remarks: is filled in.

    Returns:
        uint8 [channels, size, size].

    Raises:
        DecodeError: the file is unreadable, damaged, no image or too large; says which.
    """
    _now.remarks = remarks
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
                raise DecodeError(
                    f"{width}x{height} pixels are too many, accepted are up to "
                    f"{Image.MAX_IMAGE_PIXELS}"
                )
            if reading.draft:
                least = math.ceil(2 * size / reading.crop_ratio)
                image.draft(image.mode, (least, least))
            _scale_transparent(image)
            upright = ImageOps.exif_transpose(image)
            flat = _flatten(upright, reading, remarks).convert("RGB" if channels == 3 else "L")
            pixels = np.asarray(_square(flat, size, reading))
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
    except Exception as error:  # decoders raise undocumented errors on damaged files
        raise DecodeError(f"{type(error).__name__}: {error}") from error
    finally:
        _now.remarks = None
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _square(image: Image.Image, size: int, reading: Reading) -> Image.Image:
    """Resize an image to `size` x `size` pixels, as `reading` says."""
    method = Image.Resampling[reading.interpolation.upper()]
    if reading.resize == "stretch":
        return image.resize((size, size), method)
    width, height = image.size
    if reading.resize == "pad":
        scale = size / max(width, height)
        wide, high = (max(1, round(side * scale)) for side in (width, height))
        square = Image.new(image.mode, (size, size))
        corner = ((size - wide) // 2, (size - high) // 2)
        square.paste(image.resize((wide, high), method), corner)
        return square
    short = math.floor(size / reading.crop_ratio)
    # torchvision rounds the longer side down, and the crop's corner to the nearest even number.
    wide, high = (short * side // min(width, height) for side in (width, height))
    left, top = (round((side - size) / 2) for side in (wide, high))
    return image.resize((wide, high), method).crop((left, top, left + size, top + size))


def _scale_transparent(image: ImageFile) -> None:
    """Scale a PNG's transparent colour from 2, 4 or 3x16 bits to Pillow's 8; call before
    loading.
    """
    if image.format != "PNG" or "transparency" not in image.info or not image.tile:
        return
    colour = image.info["transparency"]
    kind = image.tile[0].args
    if kind == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in colour)
    elif kind in ("L;2", "L;4"):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[kind]


def _flatten(image: Image.Image, reading: Reading, remarks: Remarks | None) -> Image.Image:
    """Remove transparency and convert to 8 bits per channel."""
    if image.mode.startswith("I"):
        return _eight_bits(image, reading, remarks)
    if image.mode == "F":
        raise DecodeError("floating-point gray levels; accepted are 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image


def _eight_bits(image: Image.Image, reading: Reading, remarks: Remarks | None) -> Image.Image:
    """Convert a 16-bit gray image to 8 bits."""
    levels = np.asarray(image).astype(np.int64)
    clear = levels == image.info.get("transparency", -1)
    most = 2**reading.bit_depth - 1
    shown = levels[~clear]
    low, high = (int(shown.min()), int(shown.max())) if shown.size else (0, 0)
    if remarks:
        remarks.brightest = high
    if low < 0 or high > most:
        why = f", the range of data.bit_depth={reading.bit_depth}" if most < FULL else ""
        raise DecodeError(f"gray levels from {low} to {high}, accepted are 0 to {most}{why}")
    scaled = (levels * 255 + most // 2) // most
    return Image.fromarray(np.where(clear, 255, scaled).astype(np.uint8))
