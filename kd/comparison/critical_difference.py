"""Mean ranks of methods over several problems, and how far apart ranks must be to count.

Demšar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets", sections 3.2.2-3.2.4.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from kd.reports.palette import BLACK, BLUE
from kd.summary.significance import LEVEL

WIDTH = 8  # of the plot, in inches


@dataclass(frozen=True)
class MeanRanks:
    """Mean ranks of methods.

    Attributes:
        means: by method, 1 for one that is always best; the best first. Equal scores share a rank.
        problems: number of problems.
        difference: critical difference of two mean ranks (Nemenyi, 5 %).
        p: of Friedman's test that all methods are equal; None for two methods.
    """

    means: Mapping[str, float]
    problems: int
    difference: float
    p: float | None

    @property
    def alike(self) -> list[tuple[str, ...]]:
        """Return the largest groups of methods whose mean ranks differ by less than critical."""
        names = list(self.means)
        found: list[tuple[str, ...]] = []
        for i, first in enumerate(names):
            end = i
            while (
                end + 1 < len(names)
                and self.means[names[end + 1]] - self.means[first] < self.difference
            ):
                end += 1
            inside = found and names[end] in found[-1]
            if end > i and not inside:
                found.append(tuple(names[i : end + 1]))
        return found


def ranks_of(scores: Mapping[str, Sequence[float]]) -> MeanRanks | None:
    """Rank methods by their scores, higher is better; None for too few methods or problems.

    Args:
        scores: by method, one per problem, in the same order.
    """
    table = np.array(list(scores.values()))  # [methods, problems]
    if table.ndim != 2 or min(table.shape) < 2:
        return None
    count, problems = table.shape
    means = rankdata(-table, axis=0).mean(1)
    order = np.argsort(means, kind="stable")
    names = list(scores)
    varied = count > 2 and bool((table != table[0]).any())
    return MeanRanks(
        {names[i]: float(means[i]) for i in order},
        problems,
        critical_difference(count, problems),
        float(friedmanchisquare(*table).pvalue) if varied else None,
    )


def critical_difference(methods: int, problems: int) -> float:
    """Return Nemenyi's critical difference of mean ranks: q * sqrt(k (k + 1) / (6 N))."""
    q = float(studentized_range.ppf(1 - LEVEL, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * problems))


def _inches(text: str) -> float:
    path = TextPath((0, 0), text.replace("$", "\\$"), size=rcParams["font.size"])
    return float(path.get_extents().width) / 72 + 0.2


def critical_difference_plot(ranks: MeanRanks) -> Figure:
    """Draw the mean ranks on a line; a bar joins methods that are not shown to differ."""
    count = len(ranks.means)
    figure = Figure(figsize=(WIDTH, 1.6 + 0.28 * count))
    labels = [f" {name} {mean:.2f} " for name, mean in ranks.means.items()]
    room = max(map(_inches, labels)) / WIDTH  # beside the line, for the names
    axes: Axes = figure.add_axes((room, 0.0, 1 - 2 * room, 1.0))
    bars = ranks.alike
    depth = 0.5 * len(bars) + 1
    axes.set(xlim=(0.9, count + 0.1), ylim=(-depth - 0.5 * ((count + 1) // 2) - 0.3, 1.9))
    axes.hlines(0, 1, count, color=BLACK)
    for place in range(1, count + 1):
        axes.vlines(place, 0, 0.12, color=BLACK)
        axes.text(place, 0.22, str(place), ha="center", va="bottom")
    axes.hlines(1.1, 1, 1 + ranks.difference, color=BLUE, linewidth=2)
    axes.text(1, 1.2, f"critical difference {ranks.difference:.2f}", va="bottom")
    for level, names in enumerate(bars):
        first, last = (ranks.means[name] for name in (names[0], names[-1]))
        axes.hlines(-0.35 - 0.4 * level, first - 0.04, last + 0.04, color=BLUE, linewidth=4)
    for i, (name, mean) in enumerate(ranks.means.items()):
        left = i < (count + 1) // 2
        low = -depth - 0.5 * (i if left else count - 1 - i)
        end = 0.9 if left else count + 0.1
        axes.plot([mean, mean, end], [0, low, low], color=BLACK, linewidth=0.8)
        text = f"{name} {mean:.2f} " if left else f" {mean:.2f} {name}"
        axes.text(end, low, text.replace("$", "\\$"), ha="right" if left else "left", va="center")
    axes.axis("off")
    return figure
