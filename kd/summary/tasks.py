"""Rows of a summary of task-incremental runs: final accuracies, and their course."""

from collections.abc import Sequence

from kd.files.report_file import IncrementalReport
from kd.reports.page import Picture, picture
from kd.reports.table import Cell, Table
from kd.reports.tasks import EVALUATIONS, MEASURES, draw_by_method
from kd.summary.groups import Row
from kd.summary.significance import finite
from kd.summary.tables import spread

LINES = 15  # maximum number of rows in the picture


def task_table(rows: Sequence[Row]) -> Table | None:
    """Make accuracies in per cent and differences in points, in both protocols, or None."""
    found = _learners(rows)
    if not found:
        return None
    heads = [
        f"{kind.partition('_')[0]}: {words}" for kind in EVALUATIONS for words in MEASURES.values()
    ]
    cells = []
    for (rank, learner), row in found.items():
        columns = [_spread(row, kind, name) for kind in EVALUATIONS for name in MEASURES]
        cells.append(
            (
                Cell(str(rank), rank),
                Cell(learner),
                Cell(str(len(row.runs)), len(row.runs)),
                *columns,
            )
        )
    return Table(("#", "runs", "seeds", *heads), cells)


def _spread(row: Row, kind: str, measure: str) -> Cell:
    results = _task_results(row)
    return spread(finite(each.by(kind).measure(measure) for each in results), 100, 1)


def task_picture(rows: Sequence[Row]) -> Picture | None:
    """Draw the accuracy on all classes seen, after each task; None without tasks."""
    found = _learners(rows)
    if not found:
        return None
    groups: dict[str, list[IncrementalReport]] = {}
    for (rank, name), row in list(found.items())[:LINES]:
        learned = _task_results(row)
        same = [each for each in learned if len(each.tasks) == len(learned[0].tasks)]
        groups[name if name not in groups else f"{rank} {name}"] = same
    return picture(
        draw_by_method(groups),
        "Test accuracy on all classes seen after each task: mean over the seeds, band ± one "
        "standard deviation. "
        "Class-incremental: among all classes seen; task-incremental: among those of the image's "
        "task.",
        "Accuracy after each task",
    )


def _task_results(row: Row) -> list[IncrementalReport]:
    """What became of the tasks in each of a row's runs."""
    return [found for run in row.runs if (found := run.report.incremental)]


def _learners(rows: Sequence[Row]) -> dict[tuple[int, str], Row]:
    """Return those rows by rank and name: the method, if it differs, or else what does."""
    found = {
        rank: row
        for rank, row in enumerate(rows, 1)
        if all(run.report.incremental for run in row.runs)
    }
    methods = [_task_results(row)[0].method for row in found.values()]
    return {
        (rank, method if methods.count(method) == 1 else f"{method}: {row.label}"): row
        for (rank, row), method in zip(found.items(), methods, strict=True)
    }
