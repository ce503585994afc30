"""Atomic writes, and the message where writing fails."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kd.errors import UserError, WriteError

# Reasons outside the program: full disk, quota, file size limit, read-only disk, no permission,
# broken disk; a file where a folder should be, or the reverse.
CAUSES = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
} | {*(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)}


def writable(folder: Path, where: str = "output_dir", remedy: str = "") -> Path:
    """Create the folder if needed and check that it is writable.

    Args:
        where: config key of the folder, for messages.
        remedy: what to do about it, appended to the message.

    Raises:
        UserError: nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # for a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{where}: cannot write into {folder.absolute()}: {reason}{remedy}"
        ) from error
    return folder


@contextmanager
def writing(path: Path, what: str = "") -> Iterator[None]:
    """Turn write errors into one message that names the file.

    Args:
        path: the file or folder.
        what: its description for people; empty if its name says it.

    Raises:
        WriteError: for one of `CAUSES`; other errors pass through.
    """
    try:
        yield
    except Exception as error:
        # Errors on reading another file are not ours
        named = getattr(error, "filename", None)
        elsewhere = named and not Path(os.fsdecode(named)).absolute().is_relative_to(
            path.absolute().parent
        )
        if (cause := cause_of(error)) is None or elsewhere:
            raise
        raise WriteError(
            f"cannot write {what and f'{what}: '}{path.absolute()}: {cause}"
        ) from error


@contextmanager
def whole(path: Path, what: str = "") -> Iterator[Path]:
    """Yield a temporary name, renamed to `path` at the end, so that a partial file is never seen.

    Raises:
        WriteError: writing failed; the earlier file is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path, what):
            # Never write through a link that somebody has put there
            temporary.unlink(missing_ok=True)
            yield temporary
            temporary.replace(path)
    finally:
        with suppress(OSError):  # a read-only disk
            temporary.unlink()


def cause_of(error: Exception) -> str | None:
    """Return why a write failed, if it is one of `CAUSES`; also if a library hides the OSError."""
    if isinstance(error, OSError) and error.errno:
        return error.strerror if error.errno in CAUSES else None
    found = re.search(r"\[Errno (\d+)\]", str(error))  # message of shutil
    number = int(found[1]) if found else None
    return os.strerror(number) if number in CAUSES else None
