"""Runs that differ in the student's number of labels: the teacher's value in labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kd.summary.groups import Row, accuracy_on_test
from kd.summary.significance import deviation, finite, mean


@dataclass(frozen=True)
class LabelCurve:
    """Test accuracy against the number of labels, of otherwise equal runs.

    Attributes:
        counts: labels of student and baseline, rising.
        student, baseline: accuracies per seed, for each count.
        teacher: its accuracies.
        name: rest of the rows' names; may be empty.
    """

    counts: list[int]
    student: list[list[float]]
    baseline: list[list[float]]
    teacher: list[float]
    name: str

    def band(self, role: str) -> tuple[list[float], list[float]]:
        """Return means, and sample standard deviations over the seeds (0 for one seed)."""
        values = getattr(self, role)
        return [mean(each) or 0.0 for each in values], [deviation(each) or 0.0 for each in values]


def label_curves(rows: Sequence[Row]) -> list[LabelCurve]:
    """Return the curves with two or more numbers of labels."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        count = mean(finite(run.report.data.labels for run in row.runs))
        both = (row.values(role, accuracy_on_test) for role in ("student", "baseline"))
        if "data.labels" in row.parts and count is not None and all(both):
            rest = " ".join(f"{k}={v}" for k, v in row.parts.items() if k != "data.labels")
            found.setdefault(rest, {})[round(count)] = row
    return [_curve(name, dict(sorted(of.items()))) for name, of in found.items() if len(of) > 1]


def _curve(name: str, rows: dict[int, Row]) -> LabelCurve:
    values = {
        role: [row.values(role, accuracy_on_test) for row in rows.values()]
        for role in ("student", "baseline", "teacher")
    }
    teacher = [each for of in values["teacher"] for each in of]
    return LabelCurve(list(rows), values["student"], values["baseline"], teacher, name)


def worth(curve: LabelCurve, place: int) -> float | None:
    """Estimate how many labels the baseline needs to match the student with `counts[place]`.

    Between two counts the baseline's accuracy is interpolated in the logarithm of the count.

    Returns:
        that number; None if the baseline does not reach it with any count.
    """
    wanted = curve.band("student")[0][place]
    (means, _) = curve.band("baseline")
    if means[0] >= wanted:
        return float(curve.counts[0])
    for i, (low, high) in enumerate(pairwise(means)):
        if low < wanted <= high:
            a, b = (math.log(each) for each in curve.counts[i : i + 2])
            return math.exp(a + (b - a) * (wanted - low) / (high - low))
    return None


def worth_of_teacher(rows: Sequence[Row]) -> list[str]:
    """State the teacher's value in labels, a sentence per curve."""
    return [_sentence(curve) for curve in label_curves(rows)]


def _sentence(curve: LabelCurve) -> str:
    few = curve.counts[0]
    most = curve.counts[-1]
    needed = worth(curve, 0)
    students = curve.band("student")[0]
    baselines = curve.band("baseline")[0]
    text = f"{curve.name}: with" if curve.name else "With"
    text += (
        f" {few:,} labels the student has {100 * students[0]:.2f} % on test, the baseline "
        f"{100 * baselines[0]:.2f} %. "
    )
    if needed is None:
        return (
            text + f"The baseline is not as good with any number of labels tried, up to {most:,}."
        )
    if needed <= few:
        return text + "The teacher is worth no further label there."
    return text + (
        f"The baseline needs about {needed:,.0f} labels to be as good: the teacher is worth some "
        f"{needed - few:,.0f} labels, {needed / few:.1f} times those there were."
    )
