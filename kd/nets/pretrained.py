"""What the libraries of nets share about weights that come with them: names, normalisation, files, gray images."""

import contextlib
import pickle
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from kd.errors import UserError

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
RGB = 3


class Pretrained(NamedTuple):
    """Weights that come with a net.

    Attributes:
        weights: what they are called, in full; part of the key of whatever starts from them.
        mean, std: of each of the red, green and blue channels of the pictures that they were trained with, for pixels
            in [0, 1].
    """

    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalization(self, channels: int) -> Normalization:
        """Mean and standard deviation for images of so many channels; for gray ones their means over the colours.

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
    """A first convolution's weight [O, 3, h, w] for gray images: [O, 1, h, w], the sum over the colours.

    On a picture whose three channels are the same it gives what the three gave together, but for the normalisation,
    which is the mean of the three (`Pretrained.normalization`).
    """
    return weight.sum(dim=1, keepdim=True)


def first_convolution(net: nn.Module) -> str:
    """The path of the module that the image goes into, the first convolution."""
    paths = (path for path, module in net.named_modules() if isinstance(module, nn.Conv2d))
    return str(next(paths))


def hub_state(url: str, where: str) -> dict[str, Any]:
    """The state dict behind a URL, from torch.hub's cache or downloaded into it; nothing but tensors is unpickled.

    Args:
        where: what asks for it, for messages.

    Raises:
        UserError: it is in no cache and cannot be downloaded, or the file is damaged.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it announces its download
            state: dict[str, Any] = torch.hub.load_state_dict_from_url(
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
                f"{where}: {file} is no weights file, or a damaged one; remove it to load it anew"
            ) from error
        raise missing(
            where, file.name, url, str(file.parent), f"download it and put it here: {file}", error
        ) from error
    return state


def missing(
    where: str, file: str, source: str, folder: str, remedy: str, error: Exception
) -> UserError:
    """The message that weights are neither here nor to be had: what was looked for, where, and how to put it there."""
    reason = str(error).strip().partition("\n")[0]
    return UserError(
        f"{where}: its weights {file} are not in {folder}, and cannot be downloaded from {source} ({reason}).\n"
        f"  Where there is a network, {remedy}\n"
        "  Or start from scratch: pretrained=false"
    )
