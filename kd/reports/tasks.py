"""Task results for people: tables and pictures of one run, and of many compared."""

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from kd.files.report_file import IncrementalReport, Report, TaskAccuracies
from kd.reports.escape import escape_record
from kd.reports.palette import STUDENTS
from kd.reports.run_report import as_markdown as run_as_markdown

# Protocols by their report key, and whether the net is given the task of an image.
EVALUATIONS = {"class_incremental": False, "task_incremental": True}
MEASURES = {
    "average": "average incremental accuracy",
    "final": "final accuracy",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
}
PICTURES = ("accuracy_matrix", "accuracy_by_task")
INK = "0.25"


def _incremental(report: Report) -> IncrementalReport:
    assert report.incremental is not None
    return report.incremental


def as_table(report: Report) -> Table:
    """Make the table of accuracies on each task after each, in per cent, for the terminal."""
    found = _incremental(report)
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption="test accuracy, %"
    )
    for column in ("", *_columns(found)):
        table.add_column(column, justify="right" if column else "left")
    for kind in EVALUATIONS:
        table.add_section()
        for row in _rows(found, kind):
            table.add_row(*row)
    for kind in EVALUATIONS:
        table.caption = f"{table.caption}\n{_words(kind)}: {_measures(found.by(kind))}"
    return table


def as_markdown(report: Report) -> str:
    """Format `report.md`: the matrices and their measures, then the last net like any run's."""
    found = escape_record(_incremental(report))
    whole = run_as_markdown(report)
    chosen = "Weights were chosen on validation; test was read once for each model."
    kept = (
        f"The weights of each task's {report.config['keep']} epoch; test was read when all "
        f"tasks were done."
    )
    head, rest = whole.replace(chosen, kept).split("\n", 1)
    lines = [head]
    for name in PICTURES if report.config["pictures"] else ():
        lines += ["", f"![{name.replace('_', ' ')}]({name}.png)"]
    for kind in EVALUATIONS:
        columns = ("", *_columns(found))
        lines += [
            "",
            f"## {_words(kind, long=True)}",
            "",
            f"Test accuracy in per cent. {_measures(found.by(kind))}.",
            "",
        ]
        lines += ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in _rows(found, kind)]
    tasks = "; ".join(f"{i}: {', '.join(names)}" for i, names in enumerate(found.tasks, start=1))
    lines += ["", f"Method {found.method}, tasks {tasks}."]
    if any(found.exemplars):
        lines.append(f"Exemplars kept after each task: {', '.join(map(str, found.exemplars))}.")
    if found.classifier == "nearest_mean":
        lines.append(
            "Classified by the nearest mean of exemplars; the table below is of the net's own "
            "outputs."
        )
    return "\n".join([*lines, "", "## The last net", rest])


def _words(kind: str, long: bool = False) -> str:
    told = "the net is told the task" if EVALUATIONS[kind] else "among all classes seen"
    return kind.replace("_", "-").capitalize() + (f" ({told})" if long else "")


def _columns(found: IncrementalReport) -> list[str]:
    return [*(f"task {i + 1}" for i in range(len(found.tasks))), "all seen"]


def _rows(found: IncrementalReport, kind: str) -> list[list[str]]:
    """Make a row per task learned: accuracies on the tasks up to it, and on all together."""
    count = len(found.tasks)
    return [
        [f"after task {i + 1}", *map(_percent, row), *[""] * (count - len(row)), _percent(after)]
        for i, (row, after) in enumerate(
            zip(found.by(kind).matrix, found.by(kind).after, strict=True)
        )
    ]


def _measures(measured: TaskAccuracies) -> str:
    words = [
        f"{words} {_percent(value)}"
        for name, words in MEASURES.items()
        if (value := measured.measure(name)) is not None
    ]
    return ", ".join(words)


def _percent(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}"  # avoids -0.0


def pictures(report: Report) -> dict[str, Figure]:
    """Draw a run's own pictures, with the names of `PICTURES`."""
    found = _incremental(report)
    return dict(
        zip(PICTURES, (draw_matrix(found), draw_by_method({found.method: [found]})), strict=True)
    )


def draw_matrix(found: IncrementalReport) -> Figure:
    """Draw the accuracy on each task (columns) after each (rows), in both protocols."""
    count = len(found.tasks)
    side = max(2.6, 0.55 * count)
    figure = Figure(figsize=(2 * side + 2.2, side + 1.1), layout="constrained")
    plots = figure.subplots(1, 2)
    for plot, kind in zip(plots, EVALUATIONS, strict=True):
        matrix = found.by(kind).matrix
        padded = [[*row, *[float("nan")] * (count - len(row))] for row in matrix]
        image = plot.imshow(padded, vmin=0, vmax=1, cmap="Blues")
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                ink = "white" if value > 0.6 else INK
                plot.text(
                    j,
                    i,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    color=ink,
                    size=8 if count > 8 else 10,
                )
        plot.set_title(_words(kind), color=INK)
        plot.set_xticks(range(count), range(1, count + 1))
        plot.set_yticks(range(count), range(1, count + 1))
        plot.set_xlabel("accuracy on task")
        plot.spines[:].set_visible(False)
    plots[0].set_ylabel("after task")
    bar = figure.colorbar(image, ax=plots, shrink=0.8, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "25", "50", "75", "100 %"])
    bar.outline.set_visible(False)
    return figure


def draw_by_method(groups: Mapping[str, Sequence[IncrementalReport]]) -> Figure:
    """The accuracy on all classes seen after each task, mean and spread over the runs of each
    group.

    Args:
        groups: the parts about tasks of several reports, by the name of their line; all of a group
            have the same number of tasks.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    plots = figure.subplots(1, 2, sharey=True)
    for plot, kind in zip(plots, EVALUATIONS, strict=True):
        for number, (name, several) in enumerate(groups.items()):
            curves = list(zip(*(each.by(kind).after for each in several), strict=True))
            mean = [100 * statistics.fmean(values) for values in curves]
            spread = [
                100 * statistics.stdev(values) if len(values) > 1 else 0.0 for values in curves
            ]
            x = range(1, len(mean) + 1)
            color = STUDENTS[number % len(STUDENTS)]
            style = ("-", "--", ":")[number // len(STUDENTS) % 3]
            marker = "os^Dv"[number % 5]
            plot.plot(
                x,
                mean,
                marker=marker,
                markersize=4,
                color=color,
                linestyle=style,
                label=name.replace("$", "\\$"),
            )
            low = [m - s for m, s in zip(mean, spread, strict=True)]
            high = [m + s for m, s in zip(mean, spread, strict=True)]
            plot.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
        plot.set_title(_words(kind), color=INK)
        plot.set_xlabel("tasks learned")
        plot.set_xticks(range(1, max(len(each[0].tasks) for each in groups.values()) + 1))
        plot.grid(axis="y", color="0.92")
        plot.spines[["top", "right"]].set_visible(False)
        plot.set_ylim(0, 102)
    plots[0].set_ylabel("accuracy on all classes seen, %")
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure
