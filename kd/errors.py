"""What a command may end with besides success, and the words for it."""

import difflib
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """Something the user can mend: shown as its message alone, without a traceback, with exit code 2."""


class CannotWrite(UserError):  # noqa: N818 - what happened
    """A file that cannot be written, such as on a full disk; what was there before is as it was."""


class Damaged(UserError):  # noqa: N818 - what happened
    """A file of ours that is not as it was written."""


class UnusedError(UserError):
    """A number was set that the chosen loss does not depend on. A sweep over losses goes on without that one."""


class Diverged(UserError):  # noqa: N818 - the word for it
    """A training whose loss is no number any more; what it had finished before is kept."""


class Interrupted(Exception):  # noqa: N818 - no error, a wish
    """The user, or the cluster, asked the run to stop: exit code 130, with the line that resumes."""


class Failed(Exception):  # noqa: N818 - the word for it
    """Nothing came of what was asked for, through no mistake that could be told before: exit code 1, with a message."""


class Dropped(Exception):  # noqa: N818 - no error, a decision
    """Whoever watches a stage gives it up in the middle: what there is of it is removed."""


def nearest(word: str, known: Collection[str]) -> str:
    """The known word most like `word`, as a phrase to end a message with; empty where none is like it.

    A dotted key is also compared by its last part, so that a knob typed without its group finds its group; of several
    keys that end alike, the shortest is meant.
    """
    by_leaf: dict[str, str] = {}
    for option in sorted(known, key=lambda key: (key.count("."), key), reverse=True):
        by_leaf[option.rpartition(".")[2]] = option
    by_name = by_leaf | {option: option for option in known}
    close = difflib.get_close_matches(word, by_name, n=1) or difflib.get_close_matches(
        word.rpartition(".")[2], by_leaf, n=1
    )
    return f"; did you mean {by_name[close[0]]!r}?" if close else ""


def first_of(error: "ValidationError") -> str:
    """The first of the problems that pydantic found: where it is, and what is wrong."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
