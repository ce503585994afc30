"""Means, spreads and intervals over seeds, paired tests, and corrections for multiple tests."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

LEVEL = 0.05
SAME = 1e-9  # smaller differences of accuracies count as none


def finite(values: Iterable[object]) -> list[float]:
    """Return the finite numbers; a run may lack one, or its loss may have diverged."""
    return [
        float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)
    ]


def mean(values: Sequence[float]) -> float | None:
    """Compute the mean; None for no values."""
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Compute the sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute Student's t interval (95 %) of the mean; None for too few or equal values."""
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
    """Gain in accuracy of a row's student over the baseline, with its significance.

    Attributes:
        values: of each run that has both.
        mean: over the runs; None without any.
        interval: 95 %; over the seeds if there are several, else over the test images.
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
        """Return the result in plain words."""
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
    """Compute a row's gain, before the correction for other rows.

    With two or more seeds it uses the t-test of paired differences (Student 1908). Wilcoxon's
    signed ranks assume less, but with n seeds p is at least 2^(1-n): five or fewer could show
    nothing.

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


def correct_gains(gains: Sequence[Gain]) -> list[Gain]:
    """Apply Holm's correction over all gains."""
    tested = [gain.p for gain in gains if gain.p is not None]
    found = iter(holm(tested))
    return [gain if gain.p is None else replace(gain, corrected=next(found)) for gain in gains]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm (1979).

    The chance of any false finding among all of them stays at the level. This also holds for
    dependent tests, as here: many rows share a baseline.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the Pareto front of points (cost, accuracy): their positions, the cheapest first."""

    def is_beaten(cost: float, accuracy: float) -> bool:
        return any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)

    return sorted(
        (i for i, point in enumerate(points) if not is_beaten(*point)), key=lambda i: points[i]
    )
