"""Rows of a summary as text tables, for Markdown and HTML; and its runs as CSV."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO

from kd.log import number_of, short
from kd.reports.escape import in_a_cell, in_markdown
from kd.reports.table import Cell, Table
from kd.summary.groups import (
    Measure,
    Row,
    accuracy_on_test,
    best_on_validation,
    differing,
    display,
    part,
)
from kd.summary.labels import worth_of_teacher
from kd.summary.reports import Run
from kd.summary.significance import LEVEL, Gain, deviation, finite, mean

ROLES = ("teacher", "baseline", "student")


def accuracy_table(rows: Sequence[Row], gains: Sequence[Gain]) -> Table:
    """Make rows by validation accuracy: accuracies in per cent, the gain in points, its test."""
    columns = (
        "#",
        "runs",
        "seeds",
        "validation, %",
        "student on test, %",
        "baseline on test, %",
        "teacher on test, %",
        *(epochs := _by_epoch(rows)),
        "gain, points [95 %]",
        "p",
        "p, corrected",
        "reading",
    )
    cells = []
    for rank, (row, gain) in enumerate(zip(rows, gains, strict=True), 1):
        accuracies = [
            row.values(role, accuracy_on_test) for role in ("student", "baseline", "teacher")
        ]
        shown = [
            spread(each, 100, 2)
            for each in (row.values("student", best_on_validation), *accuracies)
        ]
        shown += [spread(row.values("student", each), 100, 2) for each in epochs.values()]
        tests = [Cell("" if p is None else p_text(p), p) for p in (gain.p, gain.corrected)]
        first = (Cell(str(rank), rank), Cell(row.label), Cell(str(len(row.runs)), len(row.runs)))
        reading = "a trial: means nothing" if row.is_trial else gain.reading
        cells.append((*first, *shown, _gain(gain), *tests, Cell(reading)))
    return Table(columns, cells, words=(1, len(columns) - 1))


def _by_epoch(rows: Sequence[Row]) -> dict[str, Measure]:
    """Return columns of the student's test accuracy at both epochs, if any run has both."""
    columns: dict[str, Measure] = {
        "student at its last epoch, %": lambda model: model.test_by_epoch.last,
        "student at its epoch best on validation, %": lambda model: model.test_by_epoch.best,
    }
    both = any(
        None not in (model.test_by_epoch.last, model.test_by_epoch.best)
        and model.test_by_epoch.last != model.test_by_epoch.best
        for row in rows
        for model in row.models("student")
    )
    return columns if both else {}


def _gain(gain: Gain) -> Cell:
    found = spread(gain.values, 100, 2, sign="+")
    if gain.interval:
        low, high = (100 * bound for bound in gain.interval)
        return Cell(f"{found.text} [{low:+.2f}, {high:+.2f}]", found.number)
    return found


_OF_CLASSES: tuple[tuple[str, Measure, float, int], ...] = (
    ("balanced accuracy, %", lambda model: model.test.balanced_accuracy, 100, 2),
    ("AUROC", lambda model: model.test.auroc, 1, 4),
    ("mAP", lambda model: model.test.map, 1, 4),
    ("macro F1", lambda model: model.test.f1_macro, 1, 4),
)


def class_table(rows: Sequence[Row]) -> Table | None:
    """Make the metrics for uneven classes, of each role that has them; None if no report does."""
    columns: dict[str, list[Cell]] = {}
    for name, measure, factor, digits in _OF_CLASSES:
        for role in ROLES[::-1]:
            cells_of = [spread(row.values(role, measure), factor, digits) for row in rows]
            columns[f"{role}: {name}"] = cells_of
    columns = {name: cells for name, cells in columns.items() if any(cell.text for cell in cells)}
    names = [(Cell(str(rank), rank), Cell(row.label)) for rank, row in enumerate(rows, 1)]
    cells = [[*first, *(column[i] for column in columns.values())] for i, first in enumerate(names)]
    return Table(("#", "runs", *columns), cells) if columns else None


def cost_table(rows: Sequence[Row]) -> Table:
    """Make the remaining facts about each row's student: cost, calibration, training."""
    columns = (
        "parameters",
        "MACs",
        "latency, ms",
        "times faster than teacher",
        "times fewer parameters",
        "agrees with teacher, %",
        "keeps of teacher's accuracy, %",
        "gap to teacher closed, %",
        "ECE",
        "NLL, nats",
        "a step of training, ms",
        "parameters that training added",
    )
    cells = []
    for rank, row in enumerate(rows, 1):
        first = Cell(str(rank), rank), Cell(row.label), Cell(", ".join(nets(row, "student")))
        cells.append((*first, *_costs(row)))
    return Table(("#", "runs", "student", *columns), cells, words=(1, 2))


def _costs(row: Row) -> tuple[Cell, ...]:
    """The numbers of a row of `cost_table`."""

    def of_student(measure: Measure, factor: float, digits: int) -> Cell:
        return spread(row.values("student", measure), factor, digits)

    return (
        _count(row.values("student", lambda model: model.params)),
        _count(row.values("student", lambda model: model.macs)),
        of_student(lambda model: model.latency_ms.median, 1, 3),
        spread(row.comparison(lambda each: each.speedup), 1, 1),
        spread(row.comparison(lambda each: each.compression), 1, 1),
        of_student(lambda model: model.test.agreement, 100, 1),
        spread(row.comparison(lambda each: each.retention), 100, 1),
        spread(_closed_gaps(row), 100, 0),
        of_student(lambda model: model.test.ece, 1, 4),
        of_student(lambda model: model.test.nll, 1, 4),
        of_student(lambda model: model.step_ms, 1, 1),
        _count(row.values("student", lambda model: model.training_params)),
    )


def _closed_gaps(row: Row) -> list[float]:
    """Return the shares of the teacher's lead that were closed, where the lead is significant."""
    found = []
    for run in row.runs:
        comparison = run.report.comparison
        interval = comparison.lead_ci95  # missing in older reports
        if interval is None or interval[0] > 0:
            found.append(comparison.gap_closed)
    return finite(found)


def nets(row: Row, role: str) -> list[str]:
    """Return the names of a role's nets in a row; several only if more than the config changed."""
    return list(dict.fromkeys(model.net for model in row.models(role)))


def spread(values: Sequence[float], factor: float, digits: int, sign: str = "") -> Cell:
    """Format mean ± sample standard deviation; the mean alone for one value or equal ones."""
    middle = mean(values)
    sd = deviation(values)
    if middle is None:
        return Cell("")
    text = f"{factor * middle:{sign},.{digits}f}"
    if sd and len(set(values)) > 1:
        text += f" ± {factor * sd:,.{digits}f}"
    return Cell(text, factor * middle)


def _count(values: Sequence[float]) -> Cell:
    """Format the mean with three digits and a decimal prefix; a row has one net."""
    middle = mean(values)
    return Cell("") if middle is None else Cell(short(middle), middle)


def p_text(p: float) -> str:
    """Format p with two significant digits."""
    return f"{p:.2g}" if p >= 0.001 else "< 0.001"


def as_markdown(table: Table) -> str:
    """Format the table as Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |"]
    lines.append(
        "|" + "".join("---|" if i in table.words else "---:|" for i in range(len(table.columns)))
    )
    for cells in table.cells:
        lines.append("| " + " | ".join(in_markdown(cell.text) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


# Knobs worth a line above the table if all runs have them in common.
TELLING = (
    "data._target_",
    "data.limit",
    "teacher.net._target_",
    "teacher.epochs",
    "student.net._target_",
    "loss",
    "temperature",
    "alpha",
    "epochs",
    "batch_size",
    "optim._target_",
    "optim.lr",
    "lr_schedule",
    "stages",
)


def in_common(rows: Sequence[Row], *, all_knobs: bool = False) -> dict[str, str]:
    """Return the knobs that are equal in all rows: the most important ones, or all."""
    first = rows[0].settings
    changed = set(differing([row.settings for row in rows]))
    same = {
        knob for knob in first if knob not in changed and all(knob in row.settings for row in rows)
    }
    if all_knobs:
        return {knob: display(first[knob]) for knob in sorted(same)}
    return dict(part(knob, first[knob]) for knob in TELLING if knob in same)


def trial_lines(rows: Sequence[Row]) -> list[str]:
    """Warn of rows whose runs were trials; nothing where there are none."""
    trials = [str(rank) for rank, row in enumerate(rows, 1) if row.is_trial]
    if not trials:
        return []
    which = (
        "All rows are" if len(trials) == len(rows) else f"Of these rows, {', '.join(trials)} are"
    )
    return [
        f"{which} trials on a few batches of everything (trainer=smoke): their accuracies, "
        "gains, intervals and p mean nothing."
    ]


def conclusions(rows: Sequence[Row], gains: Sequence[Gain]) -> list[str]:
    """State the tables' results in sentences; those of trials are none."""
    if all(row.is_trial for row in rows):
        return []
    lines = [_best(rows[0], gains[0])] if rows[0].validation is not None else []
    lines += worth_of_teacher(rows)
    tested = [gain for gain in gains if gain.corrected is not None]
    if tested:
        found = [gain for gain in tested if gain.corrected is not None and gain.corrected < LEVEL]
        better = sum(gain.mean is not None and gain.mean > 0 for gain in found)
        lines.append(
            f"{len(tested)} {'row was' if len(tested) == 1 else 'rows were'} tested against the "
            f"baseline: {better} "
            f"better and {len(found) - better} worse beyond chance, at {100 * LEVEL:.0f} % for "
            f"any false finding among "
            "all (Holm)."
        )
    single = sum(len(row.runs) == 1 for row in rows)
    if single:
        whose = "This row has" if len(rows) == 1 else f"{single} of {len(rows)} rows have"
        lines.append(
            f"{whose} one seed: its test (McNemar) and interval are over the test images of the "
            f"same trained nets. How "
            "far the result moves with the seed is unknown."
        )
    ahead = [row for row in rows if (row.comparison(lambda each: each.gap_closed))]
    both = [
        row
        for row in rows
        if row.values("teacher", accuracy_on_test) and row.comparison(lambda each: each.gain)
    ]
    if both and not ahead:
        lines.append(
            "In no run is the teacher ahead of the baseline on test: there was no gap to close."
        )
    return lines


def _best(row: Row, gain: Gain) -> str:
    text = (
        f"Best on validation: {row.label}, with "
        f"{spread(row.values('student', best_on_validation), 100, 2).text} %; "
    )
    text += f"on test it has {spread(row.values('student', accuracy_on_test), 100, 2).text} %"
    if gain.mean is not None:
        text += (
            f", {100 * gain.mean:+.2f} points over the baseline ({gain.reading or 'not tested'})"
        )
    return text + "."


def as_csv(rows: Sequence[Row], gains: Sequence[Gain]) -> str:
    """Format one line per run: its row's statistics, differing knobs, numbers of its models.

    Accuracies are fractions; missing values are empty.
    """
    knobs = differing([row.settings for row in rows])
    lines = []
    for row, gain in zip(rows, gains, strict=True):
        accuracies = row.values("student", accuracy_on_test)
        low, high = gain.interval or (None, None)
        about = {
            "row": row.label,
            "row.seeds": len(row.runs),
            "row.val.mean": row.validation,
            "row.test.mean": mean(accuracies),
            "row.test.sd": deviation(accuracies),
            "row.gain.mean": gain.mean,
            "row.gain.sd": deviation(gain.values),
            "row.gain.low": low,
            "row.gain.high": high,
            "row.gain.test": gain.test,
            "row.gain.p": gain.p,
            "row.gain.p_holm": gain.corrected,
        }
        own = {knob: display(row.settings[knob]) for knob in knobs if knob in row.settings}
        lines += [{**about, **_head(run), **own, **dict(_numbers(run))} for run in row.runs]
    out = StringIO()
    writer = csv.DictWriter(
        out, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({name: in_a_cell(value) for name, value in line.items()} for line in lines)
    return out.getvalue()


def _head(run: Run) -> dict[str, object]:
    names = ("name", "seed", "finished", "git", "command")
    return {"folder": run.folder.name, **{name: getattr(run.report, name) for name in names}}


def _numbers(run: Run) -> Iterator[tuple[str, object]]:
    for role in ROLES:
        model = run.model(role)
        yield from _flat(
            role, model.model_dump(exclude_unset=True, exclude={"role", "history"}) if model else {}
        )
    yield from _flat("comparison", run.report.comparison.plain())
    yield from _flat("environment", run.report.environment.plain())
    for role, errors in (run.report.omitted or {}).items():
        yield from _flat(f"omitted.{role}", errors.model_dump())


def _flat(prefix: str, node: object) -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _flat(f"{prefix}.{name}", value)
    # An interval; other lists, such as a confusion matrix, are left out
    elif isinstance(node, (list, tuple)):
        if len(node) == 2 and not any(isinstance(each, (list, Mapping)) for each in node):
            yield from zip((f"{prefix}.low", f"{prefix}.high"), node, strict=True)
    else:
        yield prefix, node if not isinstance(node, float) or math.isfinite(node) else None


def measurement_setup(rows: Sequence[Row]) -> list[str]:
    """Return the machines of the measurements.

    With several lines, latencies are not comparable across rows.
    """
    machines = [run.report.environment for row in rows for run in row.runs]
    places = dict.fromkeys(
        f"{env.device}, {number_of(env.threads, 'thread')}, torch {env.torch}" for env in machines
    )
    return list(places)
