"""Many runs side by side: those that differ by their seed alone become one row, with mean and spread."""

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from kd.errors import UserError
from kd.log import say

SCHEMA = 1
COLUMNS = ("runs", "seeds", "teacher", "baseline", "student", "gain in points [95 % over seeds]", "validation")


def find_reports(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """All `report.json` in and under these folders.

    Raises:
        UserError: a path that does not exist, no report at all, or one written by a later kd.
    """
    reports = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path.resolve()}: there is no such folder")
        for file in sorted(path.rglob("report.json")):
            if file.parent.name.endswith(".partial"):
                continue
            try:
                report = json.loads(file.read_text())
                schema = report["schema"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file}: is no report of kd ({error!r})") from error
            if schema > SCHEMA:
                raise UserError(f"{file}: written by a later kd (schema {schema}; this one reads {SCHEMA})")
            reports.append(report)
    if not reports:
        raise UserError(f"{', '.join(str(path.resolve()) for path in paths)}: no report.json in there")
    return reports


def summarize(reports: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for all runs of one name, seeds apart; the best on validation first.

    Of several runs with the same name and seed the last one counts.

    Returns:
        rows with `name` (without its seed), `seeds`, and lists over the seeds: `teacher`, `baseline`, `student` (test
        accuracies, fractions), `gain` (student - baseline), `val` (the student's validation accuracy); a list is empty
        where a run has no such model.
    """
    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    for report in sorted(reports, key=lambda report: str(report["finished"])):
        groups.setdefault(re.sub(r"_s\d+$", "", report["name"]), {})[report["seed"]] = report
    rows = []
    for name, by_seed in groups.items():
        row: dict[str, Any] = {"name": name, "seeds": sorted(by_seed)}
        models = [{model["role"]: model for model in by_seed[seed]["models"]} for seed in row["seeds"]]
        for role in ("teacher", "baseline", "student"):
            row[role] = [each[role]["test"]["accuracy"] for each in models if role in each]
        row["val"] = [each["student"]["val"]["best"] for each in models if "student" in each]
        gains = [by_seed[seed]["comparison"]["gain"] for seed in row["seeds"]]
        row["gain"] = [gain for gain in gains if gain is not None]
        rows.append(row)
    return sorted(rows, key=lambda row: -statistics.fmean(row["val"] or [0.0]))


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table: mean ± standard deviation over the seeds, accuracies in per cent."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    for row in rows:
        cells = [_spread(row[column]) for column in ("teacher", "baseline", "student")]
        gain = _spread(row["gain"], sign="+") + _interval(row["gain"])
        lines.append(f"| {row['name']} | {len(row['seeds'])} | {' | '.join(cells)} | {gain} | {_spread(row['val'])} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± sample standard deviation, in per cent; the mean alone where there is one value or all are the same."""
    if not values:
        return ""
    mean = f"{100 * statistics.fmean(values):{sign}.2f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def _interval(values: Sequence[float]) -> str:
    """Student's t interval of the mean over the seeds, in points."""
    if len(values) < 2:
        return ""
    half = student_t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return f" [{100 * (mean - half):+.2f}, {100 * (mean + half):+.2f}]"


def write_summary(paths: Sequence[Path]) -> str:
    """The table of all runs under these folders; also written as `summary.md` into the first."""
    table = as_markdown(summarize(find_reports(paths)))
    target = (paths[0] if paths[0].is_dir() else paths[0].parent) / "summary.md"
    target.write_text(table)
    say(f"Written to {target}")
    return table
