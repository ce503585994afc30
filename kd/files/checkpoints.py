"""Training checkpoints: written atomically, verified on reading."""

import io
import shutil
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

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
    """Read one of our checkpoints; puts together the shards in DeepSpeed's folder.

    Raises:
        DamagedError: it is damaged or missing.
    """
    try:
        if path.is_dir():
            with TemporaryDirectory(dir=path.parent) as folder:
                return convert_zero_checkpoint_to_fp32_state_dict(path, Path(folder) / "whole.ckpt")
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
    remove_checkpoint(last)
    if best:
        remove_checkpoint(best)
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
