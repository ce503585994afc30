"""Pictures of many runs: accuracy over temperature and alpha, gains, costs, learning curves.

Each function returns a matplotlib `Figure`, drawn without pyplot's global state, or None if there
is nothing to show. Rows are ordered as in the tables.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from kd.files.report_file import ModelReport
from kd.reports.page import Picture, picture
from kd.reports.palette import BLACK, GRAY, MAP, ROLES, STUDENTS, VERMILION
from kd.summary.costs import LATENCY, PARAMETERS, cost_plot, points_of
from kd.summary.groups import Row, accuracy_on_test, best_on_validation, drawn_name
from kd.summary.labels import LabelCurve, label_curves
from kd.summary.significance import Gain, deviation

MAPS = 3  # maximum number of heat maps
BARS = 30  # rows in the gain plot
CURVES = len(STUDENTS)


def pictures(rows: Sequence[Row], gains: Sequence[Gain]) -> Iterator[Picture]:
    """Iterate over all pictures with content, each with its caption."""
    seeds = _seeds(rows)
    for family, members in list(families(rows).items())[:MAPS]:
        of = f" of {family}" if family else ""
        yield picture(
            heat_map(members),
            f"Accuracy of the student{of} over temperature and alpha, the weight of the "
            f"teacher's side: mean ± standard deviation over the seeds ({seeds} a cell). Framed: "
            "the cell that is best on validation, the one to choose; test is there to judge it by. "
            "The axes' steps are not to scale.",
            f"Heat maps of validation and test accuracy{of} over temperature and alpha",
        )
    yield from _label_pictures(rows, seeds)
    if figure := gain_plot(rows, gains):
        yield picture(
            figure,
            f"Gain in test accuracy over the baseline, with 95 % intervals: ● Student's t over "
            f"the seeds ({seeds} a row), ○ bootstrap over the test images of the only "
            f"seed.{_limit_note(len(rows), BARS)} Intervals are not "
            "corrected for the number of rows; the table's last p is.",
            "Gain of each row over its baseline with intervals",
        )
    for axis in (LATENCY, PARAMETERS):
        points = points_of(rows, axis)
        if len(points) > 1:
            yield picture(
                cost_plot(points, axis),
                f"Test accuracy against {axis.caption}. Points are means; vertical bars are ± "
                f"one standard deviation "
                f"over the seeds ({seeds} a row){axis.more}. Ringed and joined: the Pareto "
                f"front, points that none "
                "beats in both; where they differ by less than the bars, other seeds may give "
                "another front.",
                f"Test accuracy against {axis.caption}, Pareto front marked",
            )
    if figure := learning_curves(rows):
        yield picture(
            figure,
            f"Validation accuracy after each epoch: mean over the seeds ({seeds} a row), band ± "
            f"one standard deviation."
            f"{_limit_note(len(rows), CURVES)}",
            "Validation accuracy by epoch",
        )


def _label_pictures(rows: Sequence[Row], seeds: str) -> Iterator[Picture]:
    for curve in label_curves(rows)[:MAPS]:
        of = f" of {curve.name}" if curve.name else ""
        yield picture(
            label_plot(curve),
            f"Test accuracy{of} against the number of labels that student and baseline had: "
            f"mean over the seeds ({seeds} a row), band ± one standard deviation. The "
            "horizontal distance of the curves is the teacher's value in labels.",
            f"Test accuracy{of} of baseline and student against the number of labels",
        )


def _seeds(rows: Sequence[Row]) -> str:
    counts = sorted({len(row.runs) for row in rows})
    return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"


def _limit_note(count: int, limit: int) -> str:
    return f" Of {count} rows the {limit} best on validation are shown." if count > limit else ""


# Heat maps


def families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows that differ only in temperature and alpha, if both vary; best first.

    Schedules do not fit on an axis and are left out.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        if all(
            isinstance(row.settings.get(knob), (int, float)) for knob in ("temperature", "alpha")
        ):
            rest = " ".join(
                f"{k}={v}" for k, v in row.parts.items() if k not in ("temperature", "alpha")
            )
            found.setdefault(rest, []).append(row)
    return {
        name: members
        for name, members in found.items()
        if all(len(_steps(members, k)) > 1 for k in _AXES)
    }


_AXES = ("temperature", "alpha")


def _steps(rows: Sequence[Row], knob: str) -> list[float]:
    return sorted({row.number(knob) for row in rows if knob in row.parts})


def heat_map(rows: Sequence[Row]) -> Figure:
    """Draw validation and test accuracy over temperature (down) and alpha (across)."""
    down = _steps(rows, "temperature")
    across = _steps(rows, "alpha")
    width = max(3.4, 0.85 * len(across) + 1.4)
    figure = Figure(figsize=(2 * width, max(2.8, 0.55 * len(down) + 1.5)), layout="constrained")
    for axes, measure, name in zip(
        figure.subplots(1, 2),
        (best_on_validation, accuracy_on_test),
        ("validation", "test"),
        strict=True,
    ):
        cells: dict[tuple[int, int], list[float]] = {}
        for row in rows:
            at = (
                down.index(row.number("temperature")),
                across.index(row.number("alpha")),
            )
            # Of otherwise equal rows the better one
            cells.setdefault(at, row.values("student", measure))
        image = _cells(axes, cells, (len(down), len(across)))
        best = rows[0]
        corner = (
            across.index(best.number("alpha")) - 0.5,
            down.index(best.number("temperature")) - 0.5,
        )
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=VERMILION, linewidth=3))
        axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
        axes.set_yticks(range(len(down)), [f"{value:g}" for value in down])
        axes.set(xlabel="alpha", ylabel="temperature", title=name)
        figure.colorbar(image, ax=axes, label=f"{name} accuracy, %", shrink=0.9)
    return figure


def _cells(
    axes: Axes, cells: Mapping[tuple[int, int], Sequence[float]], shape: tuple[int, int]
) -> Any:
    """Draw accuracies by cell: colours, and mean ± standard deviation in per cent.

    Empty cells are crossed out.
    """
    values = np.full(shape, np.nan)
    for at, found in cells.items():
        values[at] = np.nan if not found else 100 * float(np.mean(found))
    low, high = (
        (float(f(values)) for f in (np.nanmin, np.nanmax))
        if np.isfinite(values).any()
        else (0.0, 100.0)
    )
    image = axes.imshow(values, cmap=MAP, aspect="auto", vmin=low, vmax=max(high, low + 0.1))
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(j, i, "not run", ha="center", va="center", fontsize=8, color=BLACK)
            continue
        red, green, blue, _ = colormaps[MAP](image.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        sd = deviation(cells[i, j])
        text = f"{value:.2f}" + (f"\n± {100 * sd:.2f}" if sd else "")
        axes.text(
            j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else BLACK
        )
    return image


# Labels


def label_plot(curve: LabelCurve) -> Figure:
    """Plot accuracy of baseline and student against the number of labels, with bands over seeds."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if curve.teacher:
        style = {name: ROLES["teacher"][name] for name in ("color", "linestyle")}
        axes.axhline(float(np.mean(curve.teacher)), **style, label="teacher, all labels")
    for role in ("student", "baseline"):
        style = {name: ROLES[role][name] for name in ("color", "linestyle", "marker")}
        means, sds = (np.array(each) for each in curve.band(role))
        axes.plot(curve.counts, means, **style, label=role)
        axes.fill_between(
            curve.counts, means - sds, means + sds, color=style["color"], alpha=0.2, linewidth=0
        )
    axes.set_xscale("log")
    axes.set_xticks(curve.counts, [f"{count:,}" for count in curve.counts])
    axes.minorticks_off()
    axes.set(xlabel="labels of student and baseline (log)", ylabel="test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(loc="lower right")
    return figure


# Gains


def gain_plot(rows: Sequence[Row], gains: Sequence[Gain]) -> Figure | None:
    """Plot the gain of each row with its interval, the best on validation on top."""
    shown = [
        (rank, row, gain) for rank, (row, gain) in enumerate(zip(rows, gains, strict=True), 1)
    ][:BARS]
    shown = [each for each in shown if each[2].mean is not None]
    if not shown:
        return None
    figure = Figure(figsize=(8, 0.3 * len(shown) + 1.4), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=GRAY, linewidth=1)
    for y, (_, _, gain) in enumerate(shown):
        if gain.interval:
            axes.plot(
                [100 * bound for bound in gain.interval],
                [y, y],
                color=ROLES["student"]["color"],
                linewidth=2,
            )
        face = ROLES["student"]["color"] if gain.test == "t" else "white"
        axes.plot(
            100 * (gain.mean or 0),
            y,
            "o",
            markerfacecolor=face,
            markeredgecolor=BLACK,
            markersize=6,
        )
    axes.set_yticks(
        range(len(shown)), [drawn_name(rank, row) for rank, row, _ in shown], fontsize=9
    )
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set(xlabel="gain in test accuracy over the baseline, percentage points", ylabel="runs")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


# Learning curves


def learning_curves(rows: Sequence[Row]) -> Figure | None:
    """Plot validation accuracy by epoch: teacher, baselines, and the best rows' students."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    drawn = [
        _curve(axes, _curves_of(rows, role), role, ROLES[role]) for role in ("teacher", "baseline")
    ]
    for rank, (row, color) in enumerate(zip(rows, STUDENTS, strict=False), 1):
        curves = {str(i): _history(run.model("student")) for i, run in enumerate(row.runs)}
        drawn.append(
            _curve(axes, curves, drawn_name(rank, row), {**ROLES["student"], "color": color})
        )
    if not any(drawn):
        return None
    axes.set(xlabel="epoch", ylabel="validation accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _curves_of(rows: Sequence[Row], role: str) -> dict[str, NDArray[np.float64]]:
    """Return the curves of a role's stages in the best row that has one; each stage once."""
    for row in rows:
        if models := row.models(role):
            return {model.stage: _history(model) for model in models}
    return {}


def _history(model: ModelReport | None) -> NDArray[np.float64]:
    """Return validation accuracy by epoch [epochs]; empty if the report has none."""
    values = model.history.get("val/acc", []) if model else []
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _curve(
    axes: Axes, curves: Mapping[str, NDArray[np.float64]], name: str, style: Mapping[str, Any]
) -> bool:
    """Plot mean and band over curves of any lengths; a net without training is a level line."""
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
    axes.plot(
        epochs, middle, **line, marker=style["marker"], markersize=4, markevery=every, label=name
    )
    if len(found) > 1:
        band = _down(values, lambda some: np.std(some, ddof=1) if len(some) > 1 else 0.0)
        axes.fill_between(
            epochs, middle - band, middle + band, color=style["color"], alpha=0.15, linewidth=0
        )
    return True


def _down(
    values: NDArray[np.float64], of: Callable[[NDArray[np.float64]], Any]
) -> NDArray[np.float64]:
    """Compute a statistic of each column's numbers; nan for an empty column."""
    columns = (column[np.isfinite(column)] for column in values.T)
    return np.array([of(column) if len(column) else np.nan for column in columns])
