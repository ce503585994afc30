"""Weights from a file: safetensors, or what `torch.load(weights_only=True)` accepts; never a pickle that runs code."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kd.errors import UserError


def load_weights(net: nn.Module, path: Path, where: str) -> None:
    """Load a file's state dict into `net`; names and shapes must be the same.

    Args:
        where: the config's key for the path, for messages.

    Raises:
        UserError: the file cannot be read, or its tensors are not those of the net; says which.
    """
    found, expected = read_weights(path, where), net.state_dict()
    problems = []
    for title, names in (
        ("missing", [name for name in expected if name not in found]),
        ("unexpected", [name for name in found if name not in expected]),
        (
            "of another shape",
            [
                f"{name} {list(found[name].shape)}, the net has {list(tensor.shape)}"
                for name, tensor in expected.items()
                if name in found and found[name].shape != tensor.shape
            ],
        ),
    ):
        if names:
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            problems.append(f"  {title}: {', '.join(names[:10])}{more}")
    if problems:
        hint = _classes_hint(found, expected)
        raise UserError("\n".join([f"{where}: the weights in {path} do not fit the net:", *problems, *hint]))
    net.load_state_dict(found)


def _classes_hint(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """One line where the file seems to be for another number of classes: its last layer has other rows."""
    last = next(reversed(expected))
    if last not in found or found[last].ndim != 1 or len(found[last]) == len(expected[last]):
        return []
    return [f"  the file is for {len(found[last])} classes, the data has {len(expected[last])}"]


def existing(path: Path, where: str) -> Path:
    """The path, if there is a file.

    Raises:
        UserError: if there is none.
    """
    if not path.is_file():
        raise UserError(f"{where}: there is no file {path.resolve()}")
    return path


def read_weights(path: Path, where: str) -> dict[str, Tensor]:
    """The state dict in a `.safetensors`, `.pt` or `.pth` file.

    Raises:
        UserError: it is not there, is damaged, holds something else, or is a pickle that would run code.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{where}: cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{where}: {path} is a pickle that needs more than tensors to load, so it could run any code; refused.\n"
            "  Where you trust it, convert it once: "
            "torch.save(torch.load(PATH, weights_only=False).state_dict(), NEW_PATH)"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{where}: {path} is no weights file: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{where}: {path} holds no state dict (a mapping of names to tensors)")
    return state
