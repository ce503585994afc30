"""Model card of a run's student: purpose, training data, quality, limitations."""

import json
import shlex
from collections.abc import Mapping, Sequence

from kd.config.trainer import trial_note
from kd.files.header import STUDENT
from kd.files.report_file import DataReport, Metrics, ModelReport, Report
from kd.reports.escape import as_code, escape_record
from kd.reports.run_report import cautions, test_overlap
from kd.reports.units import selection_data, training_images

FEW = 1000  # fewer test images cause a warning about the interval
UNEVEN = 3.0  # ratio of most to least frequent test class that causes a warning
UNSURE = 0.05  # expected calibration error that causes a warning about probabilities
LISTED = 20  # classes listed with their recall


def model_card(report: Report, folder: str) -> str:
    """Format `MODEL_CARD.md`, after Mitchell et al. 2019, "Model Cards for Model Reporting".

    Args:
        report: contents of `report.json` of a run with a student.
        folder: of the run, for the lines that use the model.
    """
    command, report = as_code(report.command), escape_record(report)
    by_role = {model.role: model for model in report.models}
    student = by_role["student"]
    data = report.data
    parts = {
        "What it is": _what(student, by_role.get("teacher"), report),
        "What it is for": _purpose(data),
        "Data": _data(report),
        "How good it is": [*_metrics(by_role, data), "", *_classes(student, data.classes)],
        "What to beware of": _limits(student, data, report),
        "How to use it": _use(folder),
        "How it was made": _provenance(report, command),
    }
    lines = [f"# Model card: {report.name}"]
    for title, text in parts.items():
        lines += ["", f"## {title}", "", *text]
    return "\n".join([*lines, ""])


def _what(student: ModelReport, teacher: ModelReport | None, report: Report) -> list[str]:
    taught = f", distilled from {teacher.net} ({teacher.params:,} parameters)" if teacher else ""
    return [
        f"An image classifier: {student.net} with {student.params:,} parameters, "
        f"{student.macs:,} "
        f"multiply-accumulates an image and {student.bytes:,} bytes{taught}. It chooses one of "
        f"{len(report.data.classes)} classes: {_some(report.data.classes)}."
    ]


def _purpose(data: DataReport) -> list[str]:
    return [
        f"Images of the kind it was trained on ({data.name}), each of exactly one of its "
        "classes. For any other image it chooses one of them too. Not meant for decisions "
        "about people, diagnoses among them, without a test of its own for that use."
    ]


def _data(report: Report) -> list[str]:
    data = report.data
    skipped = (
        f" {len(data.skipped)} files could not be decoded and were left out."
        if data.skipped
        else ""
    )
    return [
        f"- {data.name}: {training_images(data)}; {data.val} for validation; "
        f"{data.test} for the test, read once at the end. {selection_data(report)}{skipped}",
        *(f"- {note[0].upper()}{note[1:]}." for note in data.notes),
        f"- Licence of the data, as stated by whoever trained the model: "
        f"{data.license or 'not stated'}.",
    ]


def _metrics(by_role: Mapping[str, ModelReport], data: DataReport) -> list[str]:
    names = [role for role in ("student", "baseline", "teacher") if role in by_role]
    tests = [by_role[role].test for role in names]

    def row(title: str, cells: Sequence[str]) -> str:
        return f"| {title} | {' | '.join(cells)} |"

    return [
        f"On the {data.test} test images:",
        "",
        row("", names),
        row("---", ["---:"] * len(names)).replace(" ", ""),
        row("accuracy [95 %, Wilson]", [_interval(test) for test in tests]),
        row("balanced accuracy", [_percent(test.balanced_accuracy) for test in tests]),
        row("negative log-likelihood, nats", [f"{test.nll:.3f}" for test in tests]),
        row("expected calibration error", [f"{test.ece:.3f}" for test in tests]),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _interval(test: Metrics) -> str:
    low, high = (100 * bound for bound in test.accuracy_ci95)
    return f"{100 * test.accuracy:.2f} % [{low:.1f}, {high:.1f}]"


def _counts(student: ModelReport) -> list[int]:
    """Return the test images per class; empty if the report has too many classes."""
    return [sum(row) for row in student.test.confusion or ()]


def _classes(student: ModelReport, classes: Sequence[str]) -> list[str]:
    """Format the recall of each class, the worst first."""
    counts = _counts(student)
    confusion = student.test.confusion
    if confusion:
        recalls = sorted(
            (confusion[i][i] / n, name, n)
            for i, (name, n) in enumerate(zip(classes, counts, strict=True))
            if n
        )
    else:
        recalls = [
            (each.right / each.images, classes[each.label], each.images)
            for each in student.test.worst_classes or ()
        ]
    if not recalls:
        return []
    title = "the worst first" if len(classes) <= LISTED else f"the {LISTED} worst"
    shown = ", ".join(f"{name} {100 * recall:.0f} % of {n}" for recall, name, n in recalls[:LISTED])
    return [f"Found of each class, {title}: {shown}."]


def _limits(student: ModelReport, data: DataReport, report: Report) -> list[str]:
    test = student.test
    counts = [n for n in _counts(student) if n]
    low, high = (100 * bound for bound in test.accuracy_ci95)
    lines = [
        *trial_note(report.trainer),
        *test_overlap(data),
        "Not tested: images from elsewhere (other cameras, places, people), corrupted or "
        "adversarial ones, and whether "
        "it serves all groups of people alike. Accuracy there may be far lower.",
        f"One training with seed {report.seed}; another seed gives another accuracy.",
    ]
    if data.test < FEW:
        lines.append(
            f"The test is small: with {data.test} images the accuracy is known to {low:.1f} "
            f"to {high:.1f} %."
        )
    if counts and max(counts) > UNEVEN * min(counts):
        lines.append(
            f"The classes are uneven: {min(counts)} to {max(counts)} test images. Look at the "
            f"balanced accuracy, and "
            "at the classes one by one."
        )
    if test.ece > UNSURE:
        lines.append(
            f"Its probabilities are off by {test.ece:.3f} on average: do not read them as its "
            "accuracy. `python -m kd.evaluate` fits a temperature that corrects most of that."
        )
    return [f"- {line}" for line in [*lines, *cautions(report)]]


def _use(folder: str) -> list[str]:
    return [
        "```python",
        "from kd import load",
        "",
        f"model = load({json.dumps(folder)})  # or its {STUDENT}, or an .onnx file of kd.export",
        'logits = model(model.read("image.png"))',
        "print(model.classes[logits.argmax()])",
        "```",
        "",
        "```bash",
        shlex.join(
            ["python", "-m", "kd.predict", f"model={folder}", "images=FOLDER", "out=preds.csv"]
        ),
        "```",
    ]


def _provenance(report: Report, command: str) -> list[str]:
    env = report.environment
    return [
        f"- {command}",
        f"- Finished {report.finished}, commit {report.git or 'unknown'}; Python "
        f"{env.python}, torch "
        f"{env.torch}, Lightning {env.lightning}, {env.device}.",
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (
        f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    )
