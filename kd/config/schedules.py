"""Schedules: numbers as plain functions of training progress.

Progress is the share of the stage's optimiser steps done, from 0 to 1. In the config each number of
the objective, and `alpha` and `temperature` at top level, is a number or a schedule:

    temperature: {schedule: cosine, start: 8, end: 2}           a function of this file
    temperature: {_target_: my_module.zigzag, amplitude: 3}     any function of `progress`
"""

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from kd.config.construct import check_keywords, check_values, resolve_target
from kd.errors import UserError, nearest

Schedule = Callable[[float], float]


def constant(progress: float, value: float) -> float:
    """Keep one value."""
    return value


def linear(progress: float, start: float, end: float, over: float = 1.0) -> float:
    """Move from `start` to `end` in a straight line.

    Args:
        over: share of training that the change takes, in (0, 1]; `end` holds afterwards.

    Raises:
        ValueError: `over` is out of range.
    """
    return start + (end - start) * _share(progress, over)


def cosine(
    progress: float, start: float, end: float, over: float | None = None, after: float = 0.0
) -> float:
    """Move from `start` to `end` along half a cosine period: slow, fast, slow.

    Args:
        over: share of training that the change takes, in (0, 1]; `end` holds afterwards. None: all
            that is left.
        after: share of training before the change, in [0, 1), with the value `start`.

    Raises:
        ValueError: `over` or `after` is out of range.
    """
    if not 0 <= after < 1:
        raise ValueError(f"after: found {after}, accepted is a number from 0 to below 1")
    share = _share(max(progress - after, 0.0), 1 - after if over is None else over)
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2


def step(progress: float, start: float, end: float, at: float) -> float:
    """Switch from `start` to `end` at the progress `at`, in [0, 1].

    Raises:
        ValueError: `at` is out of range.
    """
    if not 0 <= at <= 1:
        raise ValueError(f"at: found {at}, accepted is a number from 0 to 1")
    return start if progress < at else end


def warmup(progress: float, end: float, over: float = 0.1) -> float:
    """Rise from 0 to `end` in a straight line over the first share `over`, in (0, 1], then stay.

    Raises:
        ValueError: `over` is out of range.
    """
    return linear(progress, 0.0, end, over)


def one_minus(progress: float, of: Schedule) -> float:
    """Compute 1 minus another schedule."""
    return 1 - of(progress)


def _share(progress: float, over: float) -> float:
    if not 0 < over <= 1:
        raise ValueError(f"over: found {over}, accepted is a number above 0 and up to 1")
    return min(progress / over, 1.0)


class Accept(NamedTuple):
    """Accepted values of a number, as text and as a test."""

    words: str
    test: Callable[[float], bool]


ANY = Accept("a finite number", math.isfinite)
SHARE = Accept("a number from 0 to 1", lambda value: 0 <= value <= 1)
POSITIVE = Accept("a number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Accept("a number from 0", lambda value: 0 <= value < math.inf)

# The range of a schedule is checked at these points of progress, both ends included.
GRID = [i / 100 for i in range(101)]
NAMES = ("constant", "linear", "cosine", "step", "warmup", "one_minus")


def is_schedule(value: object, where: str = "schedule") -> bool:
    """Whether a config value is a schedule: has `schedule`, or a `_target_` that takes
    `progress`.
    """
    if not isinstance(value, Mapping):
        return False
    return "schedule" in value or (
        "_target_" in value
        and "progress" in inspect.signature(resolve_target(value, where)[0]).parameters
    )


def make_schedule(value: object, where: str, accept: Accept = ANY) -> Schedule:
    """Build a function of progress in [0, 1] from a number or a schedule in the config.

    Args:
        where: config key of the value, for messages.
        accept: accepted values.

    Raises:
        UserError: for other types, an unknown parameter, or a value out of range.
    """
    if not isinstance(value, Mapping):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not accept.test(value):
            raise UserError(
                f"{where}: found {value!r}, accepted is {accept.words}, or a schedule of such"
            )
        return partial(constant, value=float(value))
    function, keywords = _resolve(value, where)
    check_values(function, {k: v for k, v in keywords.items() if not isinstance(v, Mapping)}, where)
    inner = {k for k, v in keywords.items() if k == "of" or is_schedule(v, f"{where}.{k}")}
    numbers = {
        k: make_schedule(v, f"{where}.{k}") if k in inner else v for k, v in keywords.items()
    }
    schedule = partial(function, **numbers)
    for progress in GRID:
        try:
            found = schedule(progress)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {error}") from error
        if not accept.test(found):
            raise UserError(
                f"{where}: it is {found:g} at progress {progress:g}; accepted is "
                f"{accept.words} all along"
            )
    return schedule


def _resolve(
    node: Mapping[str, object], where: str
) -> tuple[Callable[..., float], dict[str, object]]:
    """Return a schedule's function, and its keywords except `progress`."""
    if "schedule" in node:
        name = node["schedule"]
        if name not in NAMES:
            raise UserError(
                f"{where}.schedule: found {name!r}, accepted are "
                f"{', '.join(NAMES)}{nearest(str(name), NAMES)}"
            )
        function = getattr(sys.modules[__name__], name)
        keywords = {str(k): v for k, v in node.items() if k != "schedule"}
    elif is_schedule(node, where):
        function, keywords = resolve_target(node, where)
    else:
        raise UserError(
            f"{where}: found {dict(node)!r}, accepted is a number, or a schedule as "
            "{schedule: NAME, ...}"
        )
    check_keywords(partial(function, 0.0), keywords, where)
    return function, keywords
