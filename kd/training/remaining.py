"""What a run still does after a stage, and lengths of time for people."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outlook:
    """What a run still does after a stage.

    Attributes:
        rest: seconds of the stages after it, given those of this one.
        shorter: command line for a run of half an hour.
    """

    rest: Callable[[float], float]
    shorter: str


def duration(seconds: float) -> str:
    """Format a duration for people: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
