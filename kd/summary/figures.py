"""Pictures of many runs: accuracy over temperature and alpha, gains, accuracy against costs, learning curves.

Each function gives a matplotlib `Figure`, drawn without pyplot's global state, or None where there is nothing to show.
Rows go by their rank, as in the tables.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from kd.reports.page import Picture, picture
from kd.reports.palette import BLACK, GRAY, MAP, ROLES, STUDENTS, VERMILION
from kd.reports.units import short
from kd.summary.groups import Row, dig
from kd.summary.significance import Gain, deviation, finite, mean, pareto
from kd.summary.tables import nets

Axes = Any  # matplotlib's, which has no types

MAPS = 3  # heat maps at most
BARS = 30  # rows whose gain is drawn
CURVES = len(STUDENTS)
NAMED = 12  # points of the Pareto front that have their name
LETTERS = 40  # of a row's name in a picture
HEIGHT = 280  # of the axes of accuracy against costs, about, in points of print


def pictures(rows: Sequence[Row], gains: Sequence[Gain]) -> Iterator[Picture]:
    """All that there is something to show in, each with its caption."""
    seeds = _seeds(rows)
    for family, members in list(families(rows).items())[:MAPS]:
        of = f" of {family}" if family else ""
        yield picture(
            heat_map(members),
            f"Accuracy of the student{of} over temperature and alpha, the weight of the teacher's side: mean ± "
            f"standard deviation over the seeds ({seeds} a cell). Framed: the cell that is best on validation, the one "
            "to choose; test is there to judge it by. The axes' steps are not to scale.",
            f"Heat maps of validation and test accuracy{of} over temperature and alpha",
        )
    if figure := gain_plot(rows, gains):
        yield picture(
            figure,
            f"Gain in test accuracy over the baseline, with 95 % intervals: ● Student's t over the seeds ({seeds} a "
            f"row), ○ bootstrap over the test images of the only seed.{_limited(len(rows), BARS)} Intervals are not "
            "corrected for the number of rows; the table's last p is.",
            "Gain of each row over its baseline with intervals",
        )
    for axis in (LATENCY, PARAMETERS):
        points = points_of(rows, axis)
        if len(points) > 1:
            yield picture(
                cost_plot(points, axis),
                f"Test accuracy against {axis.caption}. Points are means; vertical bars are ± one standard deviation "
                f"over the seeds ({seeds} a row){axis.more}. Ringed and joined: the Pareto front, points that none "
                "beats in both; where they differ by less than the bars, other seeds may give another front.",
                f"Test accuracy against {axis.caption}, Pareto front marked",
            )
    if figure := learning_curves(rows):
        yield picture(
            figure,
            f"Validation accuracy after each epoch: mean over the seeds ({seeds} a row), band ± one standard deviation."
            f"{_limited(len(rows), CURVES)}",
            "Validation accuracy by epoch",
        )


def _seeds(rows: Sequence[Row]) -> str:
    counts = sorted({len(row.runs) for row in rows})
    return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"


def _limited(count: int, limit: int) -> str:
    return f" Of {count} rows the {limit} best on validation are shown." if count > limit else ""


def _name(rank: int, row: Row) -> str:
    label = row.label
    return f"#{rank} {label if len(label) <= LETTERS else label[: LETTERS - 1] + '…'}".replace("$", "\\$")


# Heat maps


def families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that differ in temperature and alpha alone, where both vary, by what else their names say; the best first.

    Schedules have no place on an axis and are left out.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        if all(isinstance(row.settings.get(knob), (int, float)) for knob in ("temperature", "alpha")):
            rest = " ".join(f"{k}={v}" for k, v in row.parts.items() if k not in ("temperature", "alpha"))
            found.setdefault(rest, []).append(row)
    return {name: members for name, members in found.items() if all(len(_steps(members, k)) > 1 for k in _AXES)}


_AXES = ("temperature", "alpha")


def _steps(rows: Sequence[Row], knob: str) -> list[float]:
    return sorted({float(row.settings[knob]) for row in rows if knob in row.parts})


def heat_map(rows: Sequence[Row]) -> Figure:
    """Validation and test accuracy over temperature (down) and alpha (across)."""
    down, across = _steps(rows, "temperature"), _steps(rows, "alpha")
    width = max(3.4, 0.85 * len(across) + 1.4)
    figure = Figure(figsize=(2 * width, max(2.8, 0.55 * len(down) + 1.5)), layout="constrained")
    for axes, path, name in zip(
        figure.subplots(1, 2), (("val", "best"), ("test", "accuracy")), ("validation", "test"), strict=True
    ):
        cells: dict[tuple[int, int], list[float]] = {}
        for row in rows:
            at = down.index(float(row.settings["temperature"])), across.index(float(row.settings["alpha"]))
            cells.setdefault(at, row.values("student", *path))  # rows that are alike otherwise: the better one
        image = _cells(axes, cells, (len(down), len(across)))
        best = rows[0].settings
        corner = across.index(float(best["alpha"])) - 0.5, down.index(float(best["temperature"])) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=VERMILION, linewidth=3))
        axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
        axes.set_yticks(range(len(down)), [f"{value:g}" for value in down])
        axes.set(xlabel="alpha", ylabel="temperature", title=name)
        figure.colorbar(image, ax=axes, label=f"{name} accuracy, %", shrink=0.9)
    return figure


def _cells(axes: Axes, cells: Mapping[tuple[int, int], Sequence[float]], shape: tuple[int, int]) -> Any:
    """Colours, and mean ± standard deviation in per cent, of accuracies by place; a place without any is crossed."""
    values = np.full(shape, np.nan)
    for at, found in cells.items():
        values[at] = np.nan if not found else 100 * float(np.mean(found))
    low, high = (float(f(values)) for f in (np.nanmin, np.nanmax)) if np.isfinite(values).any() else (0.0, 100.0)
    image = axes.imshow(values, cmap=MAP, aspect="auto", vmin=low, vmax=max(high, low + 0.1))
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(j, i, "not run", ha="center", va="center", fontsize=8, color=BLACK)
            continue
        red, green, blue, _ = colormaps[MAP](image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        sd = deviation(cells[i, j])
        text = f"{value:.2f}" + (f"\n± {100 * sd:.2f}" if sd else "")
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else BLACK)
    return image


# Gains


def gain_plot(rows: Sequence[Row], gains: Sequence[Gain]) -> Figure | None:
    """The gain of each row with its interval, the best on validation on top."""
    shown = [(rank, row, gain) for rank, (row, gain) in enumerate(zip(rows, gains, strict=True), 1)][:BARS]
    shown = [each for each in shown if each[2].mean is not None]
    if not shown:
        return None
    figure = Figure(figsize=(8, 0.3 * len(shown) + 1.4), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=GRAY, linewidth=1)
    for y, (_, _, gain) in enumerate(shown):
        if gain.interval:
            axes.plot([100 * bound for bound in gain.interval], [y, y], color=ROLES["student"]["color"], linewidth=2)
        face = ROLES["student"]["color"] if gain.test == "t" else "white"
        axes.plot(100 * (gain.mean or 0), y, "o", markerfacecolor=face, markeredgecolor=BLACK, markersize=6)
    axes.set_yticks(range(len(shown)), [_name(rank, row) for rank, row, _ in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set(xlabel="gain in test accuracy over the baseline, percentage points", ylabel="runs")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


# Accuracy against costs


@dataclass(frozen=True)
class Axis:
    """A cost: where a model's entry has it, and what the picture calls it."""

    path: tuple[str, ...]
    label: str
    caption: str
    more: str = ""


LATENCY = Axis(
    ("latency_ms", "median"),
    "latency of one image, ms (log)",
    "latency",
    ", horizontal ones over all measurements of the same net, which are averaged",
)
PARAMETERS = Axis(("params",), "parameters (log)", "number of parameters")


@dataclass
class Point:
    """One or several trainings of a net, as a point: its accuracies by stage, and all measurements of its cost."""

    role: str
    name: str
    net: str
    accuracies: dict[str, float] = field(default_factory=dict)
    costs: Sequence[float] = ()

    @property
    def at(self) -> tuple[float, float]:
        """Mean cost and mean accuracy."""
        return mean(self.costs) or 0.0, mean([*self.accuracies.values()]) or 0.0


def points_of(rows: Sequence[Row], axis: Axis) -> list[Point]:
    """The students by row; teachers and baselines once each, however many rows share their stages.

    A net costs the same however it was trained, so that what was measured for it is averaged over all runs.
    """
    points: list[Point] = []
    costs: dict[str, list[float]] = {}
    for rank, row in enumerate(rows, 1):
        for role in ROLES:
            models = [model for run in row.runs if (model := run.model(role))]
            for model in models:
                costs.setdefault(_net(model), []).extend(finite([dig(model, *axis.path)]))
            own = {model["stage"]: model["test"]["accuracy"] for model in models}
            name = _name(rank, row) if role == "student" else f"{role} {', '.join(nets(row, role))}"
            same = next((p for p in points if role != "student" and p.role == role and p.accuracies.keys() & own), None)
            if same:
                same.accuracies |= own
            elif own:
                points.append(Point(role, name, _net(models[0]), own))
    for point in points:
        point.costs = costs[point.net]
    return [point for point in points if point.at[0] > 0]


def _net(model: Mapping[str, Any]) -> str:
    return "/".join(str(model.get(name)) for name in ("net", "params", "macs"))


def cost_plot(points: Sequence[Point], axis: Axis) -> Figure:
    """Accuracy against a cost: a point a row, teachers and baselines besides, and the front that none beats."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Axes = figure.subplots()
    for role, style in ROLES.items():
        own = [point for point in points if point.role == role]
        if not own:
            continue
        x, y = zip(*(point.at for point in own), strict=True)
        bars = {
            "xerr": [deviation(point.costs) or 0.0 for point in own] if axis is LATENCY else None,
            "yerr": [deviation([*point.accuracies.values()]) or 0.0 for point in own],
        }
        look = {"color": style["color"], "fmt": style["marker"], "markeredgecolor": BLACK, "markersize": 7}
        axes.errorbar(x, y, **bars, **look, elinewidth=1, capsize=2, label=role, zorder=2 if role == "student" else 3)
    front = [points[i] for i in pareto([point.at for point in points])]
    x, y = zip(*(point.at for point in front), strict=True)
    axes.step(x, y, where="post", color=BLACK, linewidth=1, zorder=0)
    axes.plot(x, y, "o", markersize=13, markerfacecolor="none", markeredgecolor=BLACK, label="Pareto front")
    axes.set(xlabel=axis.label, ylabel="test accuracy", xscale="log")
    axes.margins(y=0.12)
    _log_axis(axes, [point.at[0] for point in points])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    named = [*front[:NAMED], *(p for p in points if p.role != "student" and p not in front)][: NAMED + 4]
    _write_names(axes, named)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _log_axis(axes: Axes, costs: Sequence[float]) -> None:
    """Room at both sides, a factor of 2 in all at least, and numbers that read well over decades and within one."""
    low, high = min(costs), max(costs)
    room = max((high / low) ** 0.25, 2**0.5)
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if high / low < 8:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_minor_locator(NullLocator())


def _write_names(axes: Axes, points: Sequence[Point]) -> None:
    """Names beside their points, moved up where they would cover each other."""
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


# Learning curves


def learning_curves(rows: Sequence[Row]) -> Figure | None:
    """Validation accuracy by epoch: teacher, baselines, and the best rows' students."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    drawn = [_curve(axes, _curves_of(rows, role), role, ROLES[role]) for role in ("teacher", "baseline")]
    for rank, (row, color) in enumerate(zip(rows, STUDENTS, strict=False), 1):
        curves = {str(i): _history(run.model("student")) for i, run in enumerate(row.runs)}
        drawn.append(_curve(axes, curves, _name(rank, row), {**ROLES["student"], "color": color}))
    if not any(drawn):
        return None
    axes.set(xlabel="epoch", ylabel="validation accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _curves_of(rows: Sequence[Row], role: str) -> dict[str, NDArray[np.float64]]:
    """Those of a role's stages in the best row that has one; each stage once."""
    for row in rows:
        models = [model for run in row.runs if (model := run.model(role))]
        if models:
            return {model["stage"]: _history(model) for model in models}
    return {}


def _history(model: Mapping[str, Any] | None) -> NDArray[np.float64]:
    """Validation accuracy by epoch [epochs]; empty where the report does not have it."""
    values = dig(model, "history", "val/acc") or []
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _curve(axes: Axes, curves: Mapping[str, NDArray[np.float64]], name: str, style: Mapping[str, Any]) -> bool:
    """Mean and band over curves that may be of different length; a net that was not trained is a level line."""
    found = [curve for curve in curves.values() if len(curve)]
    if not found:
        return False
    line = {"color": style["color"], "linestyle": style["linestyle"]}
    if max(map(len, found)) == 1:
        axes.axhline(float(np.mean(found)), **line, label=name)
        return True
    epochs = np.arange(1, max(map(len, found)) + 1)
    values = np.full((len(found), len(epochs)), np.nan)
    for i, curve in enumerate(found):
        values[i, : len(curve)] = curve
    middle = _down(values, np.mean)
    every = max(1, len(epochs) // 8)
    axes.plot(epochs, middle, **line, marker=style["marker"], markersize=4, markevery=every, label=name)
    if len(found) > 1:
        band = _down(values, lambda some: np.std(some, ddof=1) if len(some) > 1 else 0.0)
        axes.fill_between(epochs, middle - band, middle + band, color=style["color"], alpha=0.15, linewidth=0)
    return True


def _down(values: NDArray[np.float64], of: Callable[[NDArray[np.float64]], Any]) -> NDArray[np.float64]:
    """A statistic of each column's numbers, nan where it has none."""
    columns = (column[np.isfinite(column)] for column in values.T)
    return np.array([of(column) if len(column) else np.nan for column in columns])
