"""Ranking of a sweep's runs by the student's validation accuracy."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table

from kd.files.report_file import Report


@dataclass
class RankingRow:
    """Runs that differ by their seed alone, each list over the seeds.

    Attributes:
        val, test: accuracies, fractions.
        gain: over the baseline; empty where there is none.
    """

    label: str
    val: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)


def rank_runs(runs: Sequence[tuple[Sequence[str], Report]]) -> list[RankingRow]:
    """A row for all runs that differ by their seed alone, the best on validation first.

    Rows without a validation part come last, in their order: test ranks nothing.

    Args:
        runs: for each what is swept, as `key=value`, and its report.
    """
    rows: dict[str, RankingRow] = {}
    for swept, report in runs:
        label = " ".join(word for word in swept if not word.startswith("seed="))
        row = rows.setdefault(label, RankingRow(label))
        if report.student.val.best is not None:
            row.val.append(report.student.val.best)
        row.test.append(report.student.test.accuracy)
        if report.comparison.gain is not None:
            row.gain.append(report.comparison.gain)
    return sorted(rows.values(), key=lambda row: -statistics.fmean(row.val) if row.val else 0.0)


def show(runs: Sequence[tuple[Sequence[str], Report]]) -> None:
    """Print the ranking on stdout: per cent, points for the gain; mean ± deviation over seeds."""
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
        numbers = [_spread(row.val), _spread(row.test), _spread(row.gain, "+")]
        table.add_row(str(i), row.label or "all", *numbers)
    seeds = max(len(row.test) for row in rows)
    over = f"; mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    console = Console(highlight=False)
    console.print(table)
    ranked = "Ranked by validation" if rows[0].val else "Not ranked, without a validation part"
    console.print(f"{ranked}; accuracies in per cent, gain over the baseline in points{over}.")


def _spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    mean = f"{100 * statistics.fmean(values):{sign}.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"
