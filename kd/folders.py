"""Folders to write into."""

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
        probe = folder / ".write_test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{where}: cannot write into {folder.resolve()}: {error.strerror}{remedy}") from error
    return folder
