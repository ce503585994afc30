"""Training checkpoints: written atomically, verified on reading."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from kd.errors import DamagedError
from kd.files.writing import whole
from kd.log import say


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each of Lightning's checkpoints completely to disk before it replaces the last one."""

    def save_checkpoint(
        self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            WriteError: no space or no permission; the last one is kept.
        """
        # torch's error has neither the file's name nor the reason
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(Path(path), "the checkpoint") as temporary:
            temporary.write_bytes(content.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints.

    Raises:
        DamagedError: it is damaged or missing.
    """
    try:
        with zipfile.ZipFile(path) as parts:  # torch does not verify the checksums it wrote
            if bad := parts.testzip():
                raise DamagedError(f"{path} is damaged: the checksum of {bad} is wrong")
        found: dict[str, Any] = torch.load(path, "cpu", weights_only=True)
    except DamagedError:
        raise
    except Exception as error:  # a broken archive may raise anything
        raise DamagedError(f"{path} is damaged: {str(error).partition(chr(10))[0]}") from error
    return found


def last_good(last: Path, best: Path | None) -> dict[str, Any] | None:
    """Return the checkpoint to resume from; None to start from scratch, also after damage (logged).

    Args:
        last: checkpoint of the last finished epoch.
        best: checkpoint of the best epoch on validation; exists together with `last`. None where
            there is no validation part.
    """
    if not last.exists():
        return None
    try:
        if best:
            read_checkpoint(best)
        return read_checkpoint(last)
    except DamagedError as error:
        say(f"{error}; training starts from scratch")
    last.unlink()
    if best:
        best.unlink(missing_ok=True)
    return None
