"""Comparison of costs in turns, so that other load on the machine affects all alike."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
THREADS = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: description.
        ours, other: medians in `unit`, and what `other` is.
        ratio: ours / other of the medians, or of what they measure; `low` and `high` are the
            extremes over rounds.
        target: largest accepted ratio; None without a limit.
        rounds: measurements per side.
    """

    what: str
    ours: float
    other: float
    unit: str
    ratio: float
    low: float
    high: float
    target: float | None
    rounds: int
    note: str = ""

    @property
    def met(self) -> str:
        return "" if self.target is None else "yes" if self.ratio <= self.target else "no"

    def plain(self) -> dict[str, object]:
        return asdict(self) | {"met": self.met}


def in_turn(
    sides: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True
) -> dict[str, list[float]]:
    """Time each side in each round, in seconds; a side may return its own seconds."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(-1 if warm else 0, rounds):
        for name in sides if i % 2 else reversed(sides):
            started = time.perf_counter()
            own = sides[name]()
            if i >= 0:
                found[name].append(own if isinstance(own, float) else time.perf_counter() - started)
    return found


def compared(
    what: str,
    ours: Sequence[float],
    other: Sequence[float],
    *,
    target: float | None = None,
    unit: str = "s",
    scale: float = 1.0,
    note: str = "",
) -> Row:
    """Make a row from the seconds of both sides, round by round."""
    each = [a / b for a, b in zip(ours, other, strict=True)]
    a, b = median(ours), median(other)
    return Row(
        what, a * scale, b * scale, unit, a / b, min(each), max(each), target, len(each), note
    )


def seconds_of(
    *command: str, cwd: Path = HERE, says: list[str] | None = None, threads: int | None = THREADS
) -> float:
    """Seconds of wall time that a Python command takes in a process of its own.

    Args:
        says: its stdout is added to it.
        threads: of each process; None to leave that to the command.

    Raises:
        AssertionError: it failed; with what it said.
    """
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
    if threads is None:
        del variables["OMP_NUM_THREADS"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=variables, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    if says is not None:
        says.append(done.stdout)
    return seconds
