"""Folders to write into."""

import tempfile
from pathlib import Path

from kd.errors import UserError


def writable(folder: Path, where: str = "output_dir", remedy: str = "") -> Path:
    """The folder, made if need be.

    Args:
        where: the config's key for it, for messages.
        remedy: what to do about it, as the end of the message.

    Raises:
        UserError: where nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # of a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: cannot write into {folder.absolute()}: {reason}{remedy}") from error
    return folder
