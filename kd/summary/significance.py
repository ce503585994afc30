"""Means, spreads and intervals over seeds, paired tests, and their correction where many are made
at once.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

LEVEL = 0.05
SAME = 1e-9  # accuracies nearer than this are the same


def finite(values: Iterable[Any]) -> list[float]:
    """Those that are numbers; a run that lacks one, or whose loss went to nan, has none."""
    return [
        float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)
    ]


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's t interval (95 %) of the mean.

    None of fewer than two values, or where all are the same.
    """
    if len(values) < 2 or max(values) - min(values) < SAME:
        return None
    half = (
        student_t.ppf(1 - LEVEL / 2, len(values) - 1)
        * statistics.stdev(values)
        / math.sqrt(len(values))
    )
    return statistics.fmean(values) - half, statistics.fmean(values) + half


@dataclass(frozen=True)
class Gain:
    """What a row's student gains over the baseline, in accuracy, and whether that is more than
    chance.

    Attributes:
        values: of each run that has both.
        mean: over the runs; None without any.
        interval: 95 %; over the seeds where there are several, else over the test images.
        p: two-sided, of `test`.
        corrected: p after Holm's correction over all rows.
        test: `t`, paired t-test over the seeds; `McNemar`, over the test images of the only seed.
    """

    values: tuple[float, ...] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    corrected: float | None = None
    test: Literal["t", "McNemar"] | None = None

    @property
    def reading(self) -> str:
        """In plain words."""
        if self.mean is None or self.test is None:
            return ""
        if self.p is None or self.corrected is None:
            return f"the same gain in all {len(self.values)} seeds: no spread to test against"
        way = "better than" if self.mean > 0 else "worse than"
        if self.corrected < LEVEL:
            said = f"{way} the baseline"
        else:
            said = "no difference shown" + (" once corrected" if self.p < LEVEL else "")
        return (
            said if self.test == "t" else f"{said} on these images; one seed, its spread is unknown"
        )


def gain_of(
    values: Sequence[float], images: Sequence[tuple[tuple[float, float] | None, float | None]]
) -> Gain:
    """A row's gain, not yet corrected for the other rows.

    Over two and more seeds the t-test of the paired differences (Student 1908). Wilcoxon's signed
    ranks would ask less of them, but with n seeds its p is never below 2^(1-n), so with five seeds
    or fewer it could show nothing.

    Args:
        values: student - baseline of each run.
        images: of each of these runs, interval and p over its test images.
    """
    if not values:
        return Gain()
    about = Gain(tuple(values), statistics.fmean(values))
    if len(values) == 1:
        interval, p = images[0]
        return replace(about, interval=interval, p=p, test="McNemar" if p is not None else None)
    about = replace(about, interval=t_interval(values), test="t")
    if max(values) - min(values) < SAME:
        return replace(about, p=1.0 if abs(about.values[0]) < SAME else None)
    return replace(about, p=float(ttest_1samp(values, 0.0).pvalue))


def corrected(gains: Sequence[Gain]) -> list[Gain]:
    """The gains with Holm's correction over all of them."""
    tested = [gain.p for gain in gains if gain.p is not None]
    found = iter(holm(tested))
    return [gain if gain.p is None else replace(gain, corrected=next(found)) for gain in gains]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm (1979).

    The chance of any false finding among all of them stays at the level.

    It holds for tests that depend on each other, as these do: many rows share a baseline.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points (cost, accuracy) nothing beats.

    None is as cheap and as accurate, and better in one of the two.

    Returns:
        their places in `points`, the cheapest first.
    """

    def beaten(cost: float, accuracy: float) -> bool:
        return any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)

    return sorted(
        (i for i, point in enumerate(points) if not beaten(*point)), key=lambda i: points[i]
    )
