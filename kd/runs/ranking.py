"""Ranking of a sweep's runs by the student's validation accuracy."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def student_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the student's part of a report, or the last model's if there is no student."""
    models: list[dict[str, Any]] = report["models"]
    return next((model for model in models if model["role"] == "student"), models[-1])


def rank_runs(runs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Make one row per setting over its seeds, the best on validation first.

    Args:
        runs: per run the swept values, as `key=value`, and its report.

    Returns:
        rows with `label`, and lists over the seeds: `val` and `test` (accuracies, fractions) and
        `gain` (over the baseline; empty if there is none).
    """
    rows: dict[str, dict[str, Any]] = {}
    for swept, report in runs:
        label = " ".join(word for word in swept if not word.startswith("seed="))
        row = rows.setdefault(label, {"label": label, "val": [], "test": [], "gain": []})
        student = student_of(report)
        row["val"].append(student["val"]["best"])
        row["test"].append(student["test"]["accuracy"])
        if report["comparison"]["gain"] is not None:
            row["gain"].append(report["comparison"]["gain"])
    return sorted(rows.values(), key=lambda row: -statistics.fmean(row["val"]))


def show(runs: Sequence[tuple[Sequence[str], Mapping[str, Any]]]) -> None:
    """Print the ranking on stdout: per cent, points for the gain; mean ± standard deviation over
    seeds.
    """
    if not runs:
        return
    rows = rank_runs(runs)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column, justify in (
        ("", "right"),
        ("", "left"),
        ("validation", "right"),
        ("test", "right"),
        ("gain", "right"),
    ):
        table.add_column(
            column,
            justify=justify,  # type: ignore[arg-type]
            no_wrap=column != "",
            overflow="fold",
        )
    for i, row in enumerate(rows, start=1):
        numbers = [_spread(row["val"]), _spread(row["test"]), _spread(row["gain"], "+")]
        table.add_row(str(i), row["label"] or "all", *numbers)
    seeds = max(len(row["val"]) for row in rows)
    over = f"; mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"Ranked by validation; accuracies in per cent, gain over the baseline in points{over}."
    )


def _spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    mean = f"{100 * statistics.fmean(values):{sign}.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"
