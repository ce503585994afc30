"""What training keeps of itself on disk to go on from: written whole, and checked when it is read."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from kd.errors import Damaged
from kd.files.writing import whole
from kd.log import say


class WholeCheckpoints(TorchCheckpointIO):
    """Writes Lightning's checkpoints beside the one that is there, which they replace when all of them is on disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write one.

        Raises:
            CannotWrite: there is no room, or no right; the one from before stays.
        """
        content = (
            io.BytesIO()
        )  # torch tells of a file that it cannot write neither the name nor the reason
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(Path(path), "the checkpoint") as temporary:
            temporary.write_bytes(content.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours.

    Raises:
        Damaged: it is damaged, or gone.
    """
    try:
        with zipfile.ZipFile(
            path
        ) as parts:  # torch does not look at the checksums that it has written
            if bad := parts.testzip():
                raise Damaged(f"{path} is damaged: the checksum of {bad} is wrong")
        found: dict[str, Any] = torch.load(path, "cpu", weights_only=True)
    except Damaged:
        raise
    except Exception as error:  # whatever a broken archive gives rise to
        raise Damaged(f"{path} is damaged: {str(error).partition(chr(10))[0]}") from error
    return found


def last_good(last: Path, best: Path) -> dict[str, Any] | None:
    """What a training goes on from; None where it begins, as it does where a checkpoint is damaged, which is said.

    Args:
        last: of the last finished epoch.
        best: of the one that is best on validation so far; there where `last` is.
    """
    if not last.exists():
        return None
    try:
        read_checkpoint(best)
        return read_checkpoint(last)
    except Damaged as error:
        say(f"{error}; training begins anew")
    last.unlink()
    best.unlink(missing_ok=True)
    return None
