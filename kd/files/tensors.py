"""Tensors in files: written whole, with a checksum in the header, and checked against it when they are read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from kd.errors import Damaged
from kd.files.writing import whole

# What a file of ours says of itself, in safetensors' metadata: JSON, with the checksum of all else as `sha256`.
HEADER = "kd"


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, Any] | None = None
) -> None:
    """Write tensors, in the place of an earlier file if any.

    Args:
        about: what the file says of itself; plain values.

    Raises:
        CannotWrite: there is no room, or no right.
    """
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**(about or {}), "sha256": _digest(found, about or {})}
    with whole(path) as temporary:
        # Not save_file, whose files nobody else may read: a store may be shared.
        temporary.write_bytes(save(found, {HEADER: json.dumps(header)}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file. One with no checksum, such as another program's, is taken as it is.

    Raises:
        SafetensorError, OSError: the file cannot be read.
        Damaged: it is not as it was written.
    """
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        said = (file.metadata() or {}).get(HEADER)
    if said is None:
        return found
    try:
        about = dict(json.loads(said))
    except (ValueError, TypeError) as error:
        raise Damaged(f"{path} is damaged: its header is no JSON") from error
    wanted = about.pop("sha256", None)
    if wanted is not None and wanted != _digest(found, about):
        raise Damaged(f"{path} is damaged: its checksum is wrong")
    return found


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """SHA-256 of tensors, their names, shapes and types, and of what is said of them."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
