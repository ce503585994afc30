"""Decoding of one image file of any common kind to pixels of a given size."""

import io
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from pydantic import Field

from kd.config.fields import Interpolation, Resize
from kd.errors import UserError
from kd.shape import ImageSize, height_and_width

try:
    import simplejpeg
except ImportError:  # it is in the extra `jpeg`; Pillow gives the same pixels
    simplejpeg = None

# Kinds that Pillow recognises but cannot decode alone; EPS would start another program,
# Ghostscript.
NOT_DECODED = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))
FULL = 0xFFFF  # largest 16-bit level
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap height and width

# Pillow warns from 89 megapixels on, and phones take 108; from twice as many on it refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_now = threading.local()  # `remarks` of the file that a thread decodes


Box = tuple[int, int, int, int]  # top, left, height, width in pixels of the upright original


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


def checked_reading(where: str, **options: Any) -> Reading:
    """Build a reading whose crop ratio fits the rest.

    Args:
        where: config group of the options, for messages.

    Raises:
        UserError: the crop ratio is out of range, or crops nothing.
    """
    found = Reading(**options)
    if not 0 < found.crop_ratio <= 1:
        raise UserError(
            f"{where}.crop_ratio: found {found.crop_ratio}, accepted is a number above 0 and up "
            "to 1"
        )
    if found.crop_ratio < 1 and found.resize != "crop":
        raise UserError(
            f"{where}.crop_ratio: found {found.crop_ratio} with {where}.resize={found.resize}, "
            f"which crops nothing; set {where}.resize=crop"
        )
    return found


@dataclass
class Remarks:
    """Remarks on a decoded file.

    Attributes:
        warnings: Pillow's; collected inside `remarking`.
        brightest: highest level of a 16-bit gray image, 0 to 65535; None for any other.
        size: height and width of the upright original, in pixels.
    """

    warnings: list[str] = field(default_factory=list)
    brightest: int | None = None
    size: tuple[int, int] = (0, 0)


@cache
def endings() -> frozenset[str]:
    """Return the suffixes that this Pillow can open, in lower case with their dot."""
    Image.preinit()  # so that Pillow tries the common kinds first
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
    file: Path | bytes,
    size: ImageSize,
    channels: int,
    reading: Reading = AS_STORED,
    remarks: Remarks | None = None,
    box: Box | None = None,
) -> NDArray[np.uint8]:
    """Decode a file to an image of one size.

    The EXIF orientation is applied. Transparent pixels become white. 16-bit gray levels are divided
    by 257, or by less if `bit_depth` is smaller. The first picture of an animation or multi-page
    file counts.

    Args:
        file: path of the file, or its bytes.
        size: of the result, in pixels.
        channels: 3 for RGB, 1 for gray.
        remarks: is filled in.
        box: part of the original that is resized to the whole result, in place of `resize`; by
            `resize_box`, unless a draft makes its corners fractions of pixels.

    Returns:
        uint8 [channels, height, width].

    Raises:
        DecodeError: the file is unreadable, damaged, no image or too large; says which.
    """
    _now.remarks = remarks
    sides = height_and_width(size)
    try:
        data = file.read_bytes() if isinstance(file, Path) else file
        with Image.open(io.BytesIO(data)) as image:
            _scale_transparent(image)
            full = _upright_size(image)  # loads a PNG
            if remarks:
                remarks.size = full
            if reading.draft:
                _draft(image, sides, reading, box)
            mode = "RGB" if channels == 3 else "L"
            whole = _plain_jpeg(image, data, mode, full) if box else None
            if box and whole is not None:
                return resize_box(whole, sides, reading, box)
            upright = ImageOps.exif_transpose(image)
            part, place = _part(upright, box, full) if box else (upright, None)
            flat = _flatten(part, reading, remarks).convert(mode)
            if box and flat.size == (box[3], box[2]):  # whole pixels
                return resize_box(np.asarray(flat), sides, reading)
            pixels = np.asarray(_resize(flat, sides, reading, place))
    except DecodeError:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DecodeError(f"too many pixels, accepted are up to {most}") from None
    except UnidentifiedImageError:
        raise DecodeError("not an image, or of an unknown kind" if data else "empty file") from None
    except OSError as error:
        raise DecodeError(error.strerror or str(error)) from error
    except Exception as error:  # decoders raise undocumented errors on damaged files
        raise DecodeError(f"{type(error).__name__}: {error}") from error
    finally:
        _now.remarks = None
    return _planes(pixels)


def resize_array(
    pixels: NDArray[np.uint8], size: ImageSize, reading: Reading, box: Box | None = None
) -> NDArray[np.uint8]:
    """Resize pixels [C, H, W] as the image in a file is; see `decode`."""
    rows = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    if box:
        return resize_box(rows, height_and_width(size), reading, box)
    image = Image.fromarray(rows.copy())
    return _planes(np.asarray(_resize(image, height_and_width(size), reading, None)))


def resize_box(
    pixels: NDArray[np.uint8], size: tuple[int, int], reading: Reading, box: Box | None = None
) -> NDArray[np.uint8]:
    """Resize a box of pixels, antialiased, as torchvision's v2 does with tensors.

    Bilinear is torch's, a quarter of Pillow's time; they differ by one level in some 0.3 % of the
    pixels. The others are Pillow's.

    Args:
        pixels: [H, W] or [H, W, C].
        size: height and width of the result.
        box: None for all of them.

    Returns:
        uint8 [C, *size].
    """
    if box:
        top, left, height, width = box
        pixels = pixels[top : top + height, left : left + width]
    pixels = pixels.copy()  # contiguous, else torch would do it, in threads of its own
    if reading.interpolation != "bilinear":
        method = Image.Resampling[reading.interpolation.upper()]
        return _planes(np.asarray(Image.fromarray(pixels).resize(size[::-1], method)))
    import torch  # so that kd.predict lists files without it
    import torch.nn.functional as F

    planes = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1)
    found = F.interpolate(planes[None], size, mode="bilinear", antialias=True)[0]
    resized: NDArray[np.uint8] = found.numpy()
    return resized


def _plain_jpeg(
    image: ImageFile, data: bytes, mode: str, full: tuple[int, int]
) -> NDArray[np.uint8] | None:
    """Decode an upright JPEG by simplejpeg: Pillow's pixels, in three quarters of its time.

    Args:
        mode: RGB, or L for gray.
        full: height and width of the upright original.

    Returns:
        uint8 [H, W, 3] or [H, W, 1]; None where only Pillow does it, or says what is damaged.
    """
    if simplejpeg is None or image.format != "JPEG" or image.mode not in ("L", mode):
        return None
    if image.size != full[::-1] or image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None  # a draft, or turned
    try:
        found: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB" if mode == "RGB" else "GRAY")
    except ValueError:
        return None
    return found


def _planes(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy Pillow's pixels to [C, H, W]."""
    return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C")


def _upright_size(image: ImageFile) -> tuple[int, int]:
    """Return height and width as the EXIF orientation has them."""
    width, height = image.size
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in QUARTER_TURNS
    return (width, height) if turned else (height, width)


def _draft(image: ImageFile, size: tuple[int, int], reading: Reading, box: Box | None) -> None:
    """Have a JPEG decoded at the smallest scale that leaves twice the result's size."""
    if box is None:
        least = math.ceil(2 * max(size) / reading.crop_ratio)
        image.draft(image.mode, (least, least))
        return
    scale = max(2 * wanted / found for wanted, found in zip(size, box[2:], strict=True))
    width, height = (math.ceil(scale * side) for side in image.size)
    image.draft(image.mode, (width, height))


def _part(
    image: Image.Image, box: Box, full: tuple[int, ...]
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Cut out a box.

    Args:
        full: height and width that the box refers to; a draft is smaller.

    Returns:
        the whole pixels of the box, and its place in them: left, top, right, bottom.
    """
    down = image.height / full[0]
    right = image.width / full[1]
    top, left, height, width = box
    x = math.floor(left * right)
    y = math.floor(top * down)
    x_end = (left + width) * right
    y_end = (top + height) * down
    most_x = min(math.ceil(x_end), image.width)
    most_y = min(math.ceil(y_end), image.height)
    place = (left * right - x, top * down - y, min(x_end, most_x) - x, min(y_end, most_y) - y)
    return image.crop((x, y, most_x, most_y)), place


def _resize(
    image: Image.Image,
    size: tuple[int, int],
    reading: Reading,
    place: tuple[float, float, float, float] | None,
) -> Image.Image:
    """Resize an image to height and width `size`: a part of it, or all of it as `reading` says."""
    method = Image.Resampling[reading.interpolation.upper()]
    if place is not None or reading.resize == "stretch":
        return image.resize(size[::-1], method, box=place)
    return _pad(image, size, method) if reading.resize == "pad" else _central(image, size, reading)


def _pad(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """Resize an image as a whole into black of height and width `size`."""
    height, width = size
    scale = min(height / image.height, width / image.width)
    high, wide = (max(1, round(side * scale)) for side in (image.height, image.width))
    found = Image.new(image.mode, (width, height))
    corner = ((width - wide) // 2, (height - high) // 2)
    found.paste(image.resize((wide, high), method), corner)
    return found


def _central(image: Image.Image, size: tuple[int, int], reading: Reading) -> Image.Image:
    """Resize an image and take its centre, of height and width `size`."""
    method = Image.Resampling[reading.interpolation.upper()]
    height, width = size
    # For a square this is torchvision's rule: the shorter side is rounded down, then the longer.
    ratio = reading.crop_ratio
    if image.height * width <= image.width * height:  # the height is the tighter one
        high = math.floor(height / ratio)
        wide = max(width, high * image.width // image.height)
    else:
        wide = math.floor(width / ratio)
        high = max(height, wide * image.height // image.width)
    # torchvision rounds the crop's corner to the nearest even number.
    left, top = (round((a - b) / 2) for a, b in ((wide, width), (high, height)))
    return image.resize((wide, high), method).crop((left, top, left + width, top + height))


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
