"""File locks between processes, on one machine or several with a shared file system.

They are operating-system locks: a dead process or machine releases its locks. A file system without
them is refused, because a plain lock file would outlive its holder.
"""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from kd.errors import UserError, WriteError
from kd.files.writing import cause_of, writing
from kd.log import say

ANOTHER = "another process"


class Lock(FileLock):
    """Lock that raises where locks are unsupported, instead of falling back to a plain file."""

    def acquire(self, *args: Any, **options: Any) -> AcquireReturnProxy["Lock"]:
        """Acquire, as in filelock.

        Raises:
            Timeout: another process has it.
            WriteError: locks are not possible there.
        """
        path = Path(self.lock_file).absolute()
        try:
            return super().acquire(*args, **options)
        except Timeout:
            raise
        except OSError as error:
            if cause := cause_of(error):
                raise WriteError(f"cannot write the lock: {path}: {cause}") from error
            raise WriteError(
                f"{path}: its file system has no locks between processes "
                f"({error.strerror or error}); set output_dir to a folder on one that has"
            ) from error


def lock_at(path: Path) -> Lock:
    """Create a lock without acquiring it; one process may acquire it several times."""
    return Lock(path, fallback_to_soft=False)


@contextlib.contextmanager
def hold(path: Path, what: str, doing: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock, waiting while another process has it; logs the wait, and a takeover from a dead
    process.

    Args:
        what: locked thing, for people.
        doing: what its holder does, such as `is training it`.
        wait: False continues at once without the lock.

    Yields:
        whether it is held.

    Raises:
        WriteError: locks are not possible there.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_at(path)
    try:
        lock.acquire(timeout=0.05)
    except Timeout:
        if not wait:
            yield False
            return
        say(f"{what}: {_holder(path) or ANOTHER} {doing}; waiting")
        lock.acquire()
    with contextlib.ExitStack() as last:
        last.callback(lock.release)
        if dead := _holder(path):
            say(f"{what}: the lock of {dead}, which has ended, is taken over ({path})")
        _sign(path, f"process {os.getpid()} on {socket.gethostname()}")
        last.callback(_sign, path, "")
        yield True


@contextlib.contextmanager
def free(path: Path, *, remove: bool = True) -> Iterator[bool]:
    """Hold a lock if it is free; yields whether it is held.

    Args:
        remove: also remove the lock file.
    """
    lock = lock_at(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if remove:
            path.unlink(missing_ok=True)
        lock.release()


def check_exclusion(path: Path) -> None:
    """Check that a lock which another process holds cannot be had here too.

    Raises:
        UserError: it can, so that two commands could train the same stage at once.
    """
    with free(path, remove=False) as mine:
        if mine:
            raise UserError(
                f"output_dir: rank 0 holds {path}, but {socket.gethostname()} can have it too: its "
                "file system does not pass locks on between machines; choose one that does"
            )


def _holder(path: Path) -> str | None:
    """Return who signed a lock and has not released it."""
    try:
        found = path.read_text(errors="replace")
    except OSError:
        return None
    if not found:
        return None
    return found if re.fullmatch(r"process \d+ on [\w.-]+", found) else ANOTHER


def _sign(path: Path, name: str) -> None:
    with contextlib.suppress(OSError):  # the lock also holds on a full disk
        path.write_text(name)
