"""Writing files whole or not at all, and the message where one cannot be written."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kd.errors import CannotWrite, UserError

# Why a file cannot be written though nothing is wrong with the program: a full disk, a quota, a limit on the size of a
# file, a disk that may only be read, no permission, a broken disk; a file where a folder should be, or the reverse.
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
        raise UserError(
            f"{where}: cannot write into {folder.absolute()}: {reason}{remedy}"
        ) from error
    return folder


@contextmanager
def writing(path: Path, what: str = "") -> Iterator[None]:
    """Say in one message where something cannot be written, and what it was.

    Args:
        path: the file, or the folder.
        what: what it is, for people; nothing where its name says it.

    Raises:
        CannotWrite: for one of `CAUSES`; all else passes through.
    """
    try:
        yield
    except Exception as error:
        named = getattr(
            error, "filename", None
        )  # of another file, which may not be read, this can say nothing
        elsewhere = named and not Path(os.fsdecode(named)).absolute().is_relative_to(
            path.absolute().parent
        )
        if (cause := cause_of(error)) is None or elsewhere:
            raise
        raise CannotWrite(
            f"cannot write {what and f'{what}: '}{path.absolute()}: {cause}"
        ) from error


@contextmanager
def whole(path: Path, what: str = "") -> Iterator[Path]:
    """A temporary name to write a file under, renamed to `path` at the end, so that no half of it is ever seen.

    Raises:
        CannotWrite: it cannot be; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path, what):
            temporary.unlink(
                missing_ok=True
            )  # never written through, if it is a link that somebody has put there
            yield temporary
            temporary.replace(path)
    finally:
        with suppress(OSError):  # a disk that may only be read
            temporary.unlink()


def cause_of(error: Exception) -> str | None:
    """Why something could not be written, if that is one of `CAUSES`; also as libraries without an OSError tell it."""
    if isinstance(error, OSError) and error.errno:
        return error.strerror if error.errno in CAUSES else None
    found = re.search(r"\[Errno (\d+)\]", str(error))  # shutil
    number = int(found[1]) if found else None
    return os.strerror(number) if number in CAUSES else None
