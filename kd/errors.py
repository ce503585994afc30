"""Exceptions that end a command, and ends of their messages."""

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """An error that the user can fix: shown as its message without traceback, exit code 2."""


class WriteError(UserError):
    """A file that cannot be written, such as on a full disk; the earlier file is kept."""


class DamagedError(UserError):
    """A file of ours that has changed since it was written."""


class UnusedError(UserError):
    """A number was set that the chosen loss does not use. A sweep over losses skips this one."""


class DivergedError(UserError):
    """A training whose loss became NaN or infinite; earlier stages are kept."""


class StopRequest(Exception):  # noqa: N818 - no error, a wish
    """The user or the cluster asked to stop: exit code 130, with the command that resumes."""


class CommandError(Exception):
    """The command failed for a reason that could not be checked up front: exit code 1."""


class RankLostError(CommandError):
    """Another process of the same training has ended, so that no further training can begin."""


class DropRequest(Exception):  # noqa: N818 - no error, a decision
    """A stage was abandoned by its observer; its partial results are removed."""


def nearest(word: str, known: Collection[str]) -> str:
    """Suggest the known word nearest to `word`, as the end of a message; empty if none is near.

    A dotted key is also compared by its last part, so that a knob typed without its group is found.
    Of several matches the shortest is suggested.
    """
    by_leaf: dict[str, str] = {}
    for option in sorted(known, key=lambda key: (key.count("."), key), reverse=True):
        by_leaf[option.rpartition(".")[2]] = option
    by_name = by_leaf | {option: option for option in known}
    close = difflib.get_close_matches(word, by_name, n=1) or difflib.get_close_matches(
        word.rpartition(".")[2], by_leaf, n=1
    )
    return f"; did you mean {by_name[close[0]]!r}?" if close else ""


def nearest_beside(missing: Path) -> str:
    """Suggest the file or folder nearest to one that is not there, as `nearest` does."""
    folder = missing.parent
    return nearest(
        missing.name, [each.name for each in folder.glob("*")] if folder.is_dir() else []
    )


def first_of(error: "ValidationError") -> str:
    """Return location and message of pydantic's first problem."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
