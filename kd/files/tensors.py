"""Tensor files: written atomically with a checksum in the header, verified on reading."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from kd.errors import DamagedError
from kd.files.writing import whole

# Metadata key of our safetensors header: JSON, with the checksum of everything else as `sha256`.
HEADER = "kd"


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, object] | None = None
) -> None:
    """Write tensors, replacing an earlier file.

    Args:
        tensors: by name, of any shape.
        about: contents of the header; plain values.

    Raises:
        WriteError: no space or no permission.
    """
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**(about or {}), "sha256": _digest(found, about or {})}
    with whole(path) as temporary:
        # Not save_file, which makes files private: a store may be shared.
        temporary.write_bytes(save(found, {HEADER: json.dumps(header)}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file. Files of other programs have no checksum and are not
    verified.

    Raises:
        SafetensorError, OSError: the file cannot be read.
        DamagedError: the checksum is wrong.
    """
    with safe_open(path, "pt") as file:
        # safe_open gives no mapping.
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = (file.metadata() or {}).get(HEADER)
    if said is None:
        return found
    try:
        about = dict(json.loads(said))
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: its header is no JSON") from error
    wanted = about.pop("sha256", None)
    if wanted is not None and wanted != _digest(found, about):
        raise DamagedError(f"{path} is damaged: its checksum is wrong")
    return found


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> str:
    """Compute the SHA-256 of tensors with names, shapes and types, and of the header."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
