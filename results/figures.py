"""Pictures of result tables, as SVG: accuracy over a knob with bands over seeds, and heat maps of
the gain.
"""

import statistics
from collections.abc import Sequence
from io import BytesIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd.reports.palette import ROLES

Runs = Sequence[dict[str, str]]


def draw(runs: Runs, x: str, y: str | None) -> bytes:
    """The picture of a table; the same bytes for the same rows."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Axes = figure.subplots()
    if y is None:
        _lines(axes, runs, x)
    else:
        _heat_map(figure, axes, runs, x, y)
    out = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "kd", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _lines(axes: Axes, runs: Runs, x: str) -> None:
    places = sorted({float(run[x]) for run in runs})
    for role in ("baseline", "student"):
        means, lows, highs = [], [], []
        for place in places:
            values = [
                100 * float(run[f"{role}.test.accuracy"]) for run in runs if float(run[x]) == place
            ]
            means.append(statistics.fmean(values))
            lows.append(min(values))
            highs.append(max(values))
        color = ROLES[role]["color"]
        axes.plot(places, means, color=color, marker=ROLES[role]["marker"], label=role)
        axes.fill_between(places, lows, highs, color=color, alpha=0.2, linewidth=0)
    teacher = [
        100 * float(run["teacher.test.accuracy"]) for run in runs if run["teacher.test.accuracy"]
    ]
    if teacher:
        axes.axhline(
            statistics.fmean(teacher),
            color=ROLES["teacher"]["color"],
            linestyle="--",
            label="teacher",
        )
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.set(xlabel=x.rpartition(".")[2], ylabel="test accuracy, %")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(loc="lower right")


def _heat_map(figure: Figure, axes: Axes, runs: Runs, x: str, y: str) -> None:
    columns = sorted({float(run[x]) for run in runs})
    rows = sorted({float(run[y]) for run in runs})
    gains = [
        [
            100 * statistics.fmean(_gains(runs, {x: column, y: row}) or [float("nan")])
            for column in columns
        ]
        for row in rows
    ]
    most = max(abs(each) for line in gains for each in line)
    image = axes.imshow(gains, cmap="PuOr_r", vmin=-most, vmax=most, origin="lower", aspect="auto")
    for i, line in enumerate(gains):
        for j, value in enumerate(line):
            axes.text(j, i, f"{value:+.2f}", ha="center", va="center")
    axes.set_xticks(range(len(columns)), [f"{each:g}" for each in columns])
    axes.set_yticks(range(len(rows)), [f"{each:g}" for each in rows])
    axes.set(xlabel=x, ylabel=y)
    figure.colorbar(image, label="gain of distillation, points")


def _gains(runs: Runs, where: dict[str, float]) -> list[float]:
    return [
        float(run["comparison.gain"])
        for run in runs
        if all(float(run[knob]) == value for knob, value in where.items())
    ]
