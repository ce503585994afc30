"""Locks on files, between processes on one machine or several that share a file system.

They are the operating system's: it lets go of what a dead process held, and a file server of what a dead machine held.
A file system that has none is refused, as a lock that is only a file would outlive its holder.
"""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from kd.errors import CannotWrite
from kd.files.writing import cause_of, writing
from kd.log import say

ANOTHER = "another process"


class Lock(FileLock):
    """A lock that says so where there can be none, instead of taking a file for one."""

    def acquire(self, *args: Any, **options: Any) -> AcquireReturnProxy["Lock"]:
        """As filelock's.

        Raises:
            Timeout: another process has it.
            CannotWrite: there can be no lock there.
        """
        path = Path(self.lock_file).absolute()
        try:
            return super().acquire(*args, **options)
        except Timeout:
            raise
        except OSError as error:
            if cause := cause_of(error):
                raise CannotWrite(f"cannot write the lock: {path}: {cause}") from error
            raise CannotWrite(
                f"{path}: its file system has no locks between processes ({error.strerror or error}); "
                "set output_dir to a folder on one that has"
            ) from error


def lock_at(path: Path) -> Lock:
    """A lock, not yet held; the same process may hold it several times over."""
    return Lock(path, fallback_to_soft=False)


@contextlib.contextmanager
def held(path: Path, what: str, doing: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock. Waits as long as another process has it, and says so; a dead one's is taken over, and that is said.

    Args:
        what: is locked, for people.
        doing: what a process that has it does, such as `is training it`.
        wait: False goes on at once, without the lock.

    Yields:
        whether it is held.

    Raises:
        CannotWrite: there can be no lock there.
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
    """Hold a lock if nobody has it; whether it could be had.

    Args:
        remove: the lock's file goes with it.
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


def _holder(path: Path) -> str | None:
    """Who has signed a lock, and not yet let go."""
    try:
        found = path.read_text(errors="replace")
    except OSError:
        return None
    return (found if re.fullmatch(r"process \d+ on [\w.-]+", found) else ANOTHER) if found else None


def _sign(path: Path, name: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk it is held all the same
        path.write_text(name)
