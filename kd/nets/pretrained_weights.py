"""Pretrained weights, shared by the net libraries: names, normalisation, files, gray images."""

import contextlib
import math
import pickle
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from kd.errors import UserError

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
RGB = 3


class PretrainedWeights(NamedTuple):
    """Pretrained weights of a net.

    Attributes:
        weights: their full name; part of the key of stages that start from them.
        mean, std: per RGB channel of their training images, for pixels in [0, 1].
        size: side of the images that they were published for, in pixels.
        resized: side before the central crop; equal to `size` where nothing is cropped.
        interpolation: of the resizing.
    """

    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    resized: int
    interpolation: str

    @property
    def reading(self) -> dict[str, object]:
        """How images were read where the weights were published, as values of the config."""
        # Rounded down, so that the crop's side comes out exactly
        ratio = math.floor(1e4 * self.size / self.resized) / 1e4
        return {
            "image_size": self.size,
            "resize": "crop",
            "crop_ratio": ratio,
            "interpolation": self.interpolation,
        }

    def normalization(self, channels: int) -> Normalization:
        """Return mean and standard deviation for `channels`; for gray images the mean over RGB.

        Raises:
            ValueError: for other than 1 or 3 channels.
        """
        if channels not in (1, RGB):
            raise ValueError(
                f"pretrained: its nets take images of 1 or {RGB} channels, not {channels}"
            )
        if channels == RGB:
            return self.mean, self.std
        return (sum(self.mean) / RGB,), (sum(self.std) / RGB,)


def for_gray(weight: Tensor) -> Tensor:
    """Sum a first convolution's weight [O, 3, h, w] over colours for gray images: [O, 1, h, w].

    On an image with three equal channels the result is the same, except for the normalisation,
    which is the mean of the three (`PretrainedWeights.normalization`).
    """
    return weight.sum(dim=1, keepdim=True)


def first_convolution(net: nn.Module) -> str:
    """Return the path of the first convolution."""
    paths = (path for path, module in net.named_modules() if isinstance(module, nn.Conv2d))
    return str(next(paths))


def hub_state(url: str, where: str) -> dict[str, Tensor]:
    """Load a state dict by URL through torch.hub's cache; only tensors are unpickled.

    Args:
        where: who asks for it, for messages.

    Raises:
        UserError: it is not cached and cannot be downloaded, or the file is damaged.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub prints its download
            state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except (
        OSError,
        RuntimeError,
        LookupError,
        EOFError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        if file.exists():
            raise UserError(
                f"{where}: {file} is no weights file, or a damaged one; remove it to download "
                "it again"
            ) from error
        raise missing(
            where, file.name, url, str(file.parent), f"download it and put it here: {file}", error
        ) from error
    return state


def missing(
    where: str, file: str, source: str, folder: str, remedy: str, error: Exception
) -> UserError:
    """Build the error for missing weights: what was looked for, where, and how to put it there."""
    reason = str(error).strip().partition("\n")[0]
    return UserError(
        f"{where}: its weights {file} are not in {folder}, and cannot be downloaded from "
        f"{source} ({reason}).\n  Where there is a network, {remedy}\n  Or start from "
        "scratch: teacher.net.pretrained=false, or student.net.pretrained=false"
    )
