"""Accuracy against cost: the nets of many runs as points, with the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from kd.files.report_file import ModelReport
from kd.log import short
from kd.reports.palette import BLACK, ROLES
from kd.summary.groups import Measure, Row, drawn_name
from kd.summary.significance import deviation, finite, mean, pareto
from kd.summary.tables import nets

NAMED = 12  # labelled points of the Pareto front
HEIGHT = 280  # approximate height of the axes, in points


@dataclass(frozen=True)
class Axis:
    """A cost of a model, and what the picture calls it."""

    measure: Measure
    label: str
    caption: str
    more: str = ""


LATENCY = Axis(
    lambda model: model.latency_ms.median,
    "latency of one image, ms (log)",
    "latency",
    ", horizontal ones over all measurements of the same net, which are averaged",
)
PARAMETERS = Axis(lambda model: model.params, "parameters (log)", "number of parameters")


@dataclass
class Point:
    """One or several trainings of a net as a point: accuracies by stage, and its measured costs."""

    role: str
    name: str
    net: str
    accuracies: dict[str, float] = field(default_factory=dict)
    costs: Sequence[float] = ()

    @property
    def at(self) -> tuple[float, float]:
        """Return mean cost and mean accuracy."""
        return mean(self.costs) or 0.0, mean([*self.accuracies.values()]) or 0.0


def points_of(rows: Sequence[Row], axis: Axis) -> list[Point]:
    """Return the students by row; teachers and baselines once each, as rows share their stages.

    The cost of a net does not depend on its training, so its measurements are averaged over all
    runs.
    """
    points: list[Point] = []
    costs: dict[str, list[float]] = {}
    for rank, row in enumerate(rows, 1):
        for role in ROLES:
            models = row.models(role)
            for model in models:
                costs.setdefault(_net(model), []).extend(finite([axis.measure(model)]))
            own = {model.stage: model.test.accuracy for model in models}
            name = (
                drawn_name(rank, row)
                if role == "student"
                else f"{role} {', '.join(nets(row, role))}"
            )
            same = next(
                (
                    p
                    for p in points
                    if role != "student" and p.role == role and p.accuracies.keys() & own
                ),
                None,
            )
            if same:
                same.accuracies |= own
            elif own:
                points.append(Point(role, name, _net(models[0]), own))
    for point in points:
        point.costs = costs[point.net]
    return [point for point in points if point.at[0] > 0]


def _net(model: ModelReport) -> str:
    return f"{model.net}/{model.params}/{model.macs}"


def cost_plot(points: Sequence[Point], axis: Axis) -> Figure:
    """Plot accuracy against a cost: a point per row, teachers, baselines, and the Pareto front."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Axes = figure.subplots()
    for role, style in ROLES.items():
        own = [point for point in points if point.role == role]
        if not own:
            continue
        x, y = zip(*(point.at for point in own), strict=True)
        spreads = [deviation(point.costs) or 0.0 for point in own] if axis is LATENCY else None
        axes.errorbar(
            x,
            y,
            xerr=spreads,
            yerr=[deviation([*point.accuracies.values()]) or 0.0 for point in own],
            color=style["color"],
            fmt=style["marker"],
            markeredgecolor=BLACK,
            markersize=7,
            elinewidth=1,
            capsize=2,
            label=role,
            zorder=2 if role == "student" else 3,
        )
    front = [points[i] for i in pareto([point.at for point in points])]
    x, y = zip(*(point.at for point in front), strict=True)
    axes.step(x, y, where="post", color=BLACK, linewidth=1, zorder=0)
    axes.plot(
        x,
        y,
        "o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=BLACK,
        label="Pareto front",
    )
    axes.set(xlabel=axis.label, ylabel="test accuracy", xscale="log")
    axes.margins(y=0.12)
    _log_axis(axes, [point.at[0] for point in points])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    others = [each for each in points if each.role != "student" and each not in front]
    _write_names(axes, [*front[:NAMED], *others][: NAMED + 4])
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _log_axis(axes: Axes, costs: Sequence[float]) -> None:
    """Set up a log axis with margins, a range of at least 2, and readable ticks."""
    low = min(costs)
    high = max(costs)
    room = max((high / low) ** 0.25, 2**0.5)
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if high / low < 8:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_minor_locator(NullLocator())


def _write_names(axes: Axes, points: Sequence[Point]) -> None:
    """Label the points, moving overlapping labels up."""
    low, high = axes.get_ylim()
    left, right = np.log(axes.get_xlim())
    free = -np.inf
    for point in sorted(points, key=lambda point: point.at[1]):
        x, y = point.at
        free = max(y, free + 0.045 * (high - low))
        over = (np.log(x) - left) / (right - left) > 0.55
        axes.annotate(
            point.name,
            (x, y),
            (-9 if over else 9, 8),
            textcoords="offset points",
            ha="right" if over else "left",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
        ).set_y(8 + (free - y) / (high - low) * HEIGHT)
