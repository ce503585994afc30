"""Evaluation as text and tables, for the terminal and `evaluation.md`."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from kd.files.evaluation_file import (
    CorruptionAccuracies,
    EvaluatedModel,
    EvaluationRecord,
    OperatingPoints,
    ThresholdMetrics,
)
from kd.files.report_file import Interval
from kd.reports.escape import as_code, in_markdown
from kd.reports.table import TextRows

# Largest number of classes listed in the terminal, and with a full confusion matrix in the file.
SHOWN = 20
# Validation images; a temperature fitted on fewer is a guess, and so is a class's threshold
FEW_TO_FIT = 50
THRESHOLDS = ("class", "net", "AP, %", "threshold", "F1 there", "precision", "recall", "F1, %")


def tables(found: EvaluationRecord) -> list[Table]:
    """Make the tables for the terminal, within 80 columns: metrics, classes, corruptions."""
    roles = found.roles
    per_class = class_rows(found)
    title = "precision / recall in per cent"
    if len(per_class) > SHOWN:
        per_class = sorted(per_class, key=lambda row: _number(row[-1].rpartition("/")[2]))[:SHOWN]
        title += f"; the {SHOWN} classes with the lowest recall of the {roles[-1]}"
    shown = [
        _table(["", *roles], metric_rows(found)),
        _table(["class", "images", *roles], per_class, title),
    ]
    if by_class := threshold_rows(found):
        title = "thresholds of highest F1 on validation, and what they give"
        shown.append(_table(THRESHOLDS, by_class[:SHOWN], title))
    if found.operating_point:
        shown.append(
            _table(["", *roles], point_rows(found.operating_point), "at the operating point")
        )
    if found.corruptions:
        rows = corruption_rows(found, found.corruptions)
        shown.append(_table(["corruption", "severity", *roles], rows, "accuracy in per cent"))
    return shown


def _table(header: Sequence[str], rows: TextRows, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title)
    for i, name in enumerate(header):
        table.add_column(escape(name), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell.replace(" [", "\n[")) for cell in row))
    return table


def _number(text: str) -> float:
    return float(text) if text.strip() not in ("", "-") else -1.0


def metric_rows(found: EvaluationRecord) -> TextRows:
    """Make a row per metric: its name, then each role's value."""
    models = found.models
    tests = [model.test for model in models]
    scaled = [model.calibrated for model in models]
    two = len(found.data.classes) == 2
    rows = [
        ["net", *(model.net for model in models)],
        ["accuracy, % [95 %, Wilson]", *(_interval(t.accuracy, t.accuracy_ci95) for t in tests)],
        *_flip_rows(models),
        *label_rows(found),
    ]
    several = any(model.labels for model in models)
    if not several:
        balanced = [_percent(test.balanced_accuracy) for test in tests]
        rows.append(["balanced accuracy, %", *balanced])
    if two and not several:
        rows.append(["sensitivity, %", *(_percent(test.sensitivity) for test in tests)])
        rows.append(["specificity, %", *(_percent(test.specificity) for test in tests)])
    rows += [
        [
            "AUROC" if two or several else "AUROC, one against the rest",
            *(_f(test.auroc) for test in tests),
        ],
        ["NLL, nats", *(_f(test.nll) for test in tests)],
        ["  after temperature scaling", *(_f(each.nll if each else None) for each in scaled)],
        ["Brier score", *(_f(test.brier) for test in tests)],
        ["  after temperature scaling", *(_f(each.brier if each else None) for each in scaled)],
        ["ECE, 15 bins", *(_f(test.ece) for test in tests)],
        ["  after temperature scaling", *(_f(each.ece if each else None) for each in scaled)],
        ["temperature fitted", *(_f(each.temperature if each else None, 3) for each in scaled)],
    ]
    if any(test.kl is not None for test in tests):
        rows.append(
            ["agreement with the teacher, %", *(_percent(test.agreement) for test in tests)]
        )
        rows.append(["KL(teacher || model), nats", *(_f(test.kl) for test in tests)])
    return rows


def label_rows(found: EvaluationRecord) -> TextRows:
    """Make the rows of mAP and F1; none but of multi-label data."""
    both = [(model.test, model.labels) for model in found.models if model.labels]
    if not both:
        return []
    tuned = [each.tuned for _, each in both]
    rows = [
        ["mAP, % [95 %, bootstrap]", *(_interval(t.map, each.map_ci95) for t, each in both)],
        ["macro F1, %", *(_interval(t.f1_macro, each.f1_macro_ci95) for t, each in both)],
        ["micro F1, %", *(_interval(t.f1_micro, each.f1_micro_ci95) for t, each in both)],
    ]
    if all(tuned):
        chosen = [each for each in tuned if each]
        macro = [_interval(each.f1_macro, each.f1_macro_ci95) for each in chosen]
        micro = [_interval(each.f1_micro, each.f1_micro_ci95) for each in chosen]
        rows.append(["macro F1, thresholds by class", *macro])
        rows.append(["micro F1, thresholds by class", *micro])
    return rows


def threshold_rows(found: EvaluationRecord) -> TextRows:
    """Make a row per class and net: threshold, and what it gives; none but of multi-label data."""
    rows = []
    for i, name in enumerate(found.data.classes):
        for model in found.models:
            if not model.labels or not model.labels.tuned:
                continue
            area = _percent(model.labels.average_precision[i], 1)
            point = model.labels.tuned.per_class[i]
            cells = ["-"] * 4
            if point:
                here = point.test
                cells = [
                    f"{point.threshold:.3f}",
                    _percent(_f1(point.validation), 1),
                    _interval(here.precision, here.precision_ci95),
                    _interval(here.sensitivity, here.sensitivity_ci95),
                ]
            f1 = _percent(_f1(point.test), 1) if point else "-"
            rows.append([name, model.role, area, *cells, f1])
    return rows


def _f1(found: ThresholdMetrics) -> float | None:
    total = 2 * found.found + found.missed + found.false_alarms
    return 2 * found.found / total if total else None


def _flip_rows(models: Sequence[EvaluatedModel]) -> TextRows:
    """Make the rows of accuracy with test-time flips, if asked for."""
    flipped = [model.flipped for model in models if model.flipped]
    cells = [_interval(each.accuracy, each.accuracy_ci95) for each in flipped]
    return [["  with test-time flips", *cells]] if flipped else []


def point_rows(found: OperatingPoints) -> TextRows:
    """Make the rows of each role's operating point and its results."""
    models = found.models.values()
    val = [model.validation for model in models]
    test = [model.test for model in models]
    return [
        ["threshold, a probability", *(f"{model.threshold:.4f}" for model in models)],
        [
            "sensitivity on validation, %",
            *(_interval(each.sensitivity, each.sensitivity_ci95) for each in val),
        ],
        [
            "sensitivity, % [95 %, Wilson]",
            *(_interval(each.sensitivity, each.sensitivity_ci95) for each in test),
        ],
        [
            "specificity, %",
            *(_interval(each.specificity, each.specificity_ci95) for each in test),
        ],
        [
            "alarms that are right, %",
            *(_interval(each.precision, each.precision_ci95) for each in test),
        ],
        [
            "cleared that are right, %",
            *(_interval(each.negative_precision, each.negative_precision_ci95) for each in test),
        ],
        ["missed", *(str(each.missed) for each in test)],
        ["false alarms", *(str(each.false_alarms) for each in test)],
    ]


def class_rows(found: EvaluationRecord) -> TextRows:
    """Make a row per class: name, images, then each role's precision and recall in per cent."""
    columns = [model.test.per_class for model in found.models]
    return [
        [
            name,
            str(each[0].support),
            *(f"{_percent(m.precision, 1)} / {_percent(m.recall, 1)}" for m in each),
        ]
        for name, each in zip(found.data.classes, zip(*columns, strict=True), strict=True)
    ]


def corruption_rows(found: EvaluationRecord, under: CorruptionAccuracies) -> TextRows:
    """Make a row per corruption and severity, between those of clean images and the mean."""
    rows = [["none", "", *(_percent(model.test.accuracy) for model in found.models)]]
    for name in next(iter(under.accuracy.values())):
        for level in map(str, under.severities):
            shares = [under.accuracy[role][name][level] for role in found.roles]
            rows.append([name, level, *map(_percent, shares)])
    return [*rows, ["mean", "", *(_percent(under.mean[role]) for role in found.roles)]]


def sentences(found: EvaluationRecord) -> list[str]:
    """List the results in sentences, and notes for reading them."""
    data = found.data
    where = f" in {data.root}" if data.other else ""
    lines = [f"{data.images} images: {data.part} of {data.name}{where}."]
    if found.trial:
        lines.append(
            "The run is a trial on a few batches of everything: these figures mean nothing."
        )
    if data.left_out:
        lines.append(
            f"{data.left_out} images were left out: the run's nets were trained on them or "
            f"chosen by them."
        )
    if data.skipped:
        lines.append(f"{len(data.skipped)} files could not be decoded.")
    if data.omitted:
        nets = " and ".join(role for role in found.roles if role != "teacher")
        lines.append(f"Never shown to {nets}: {', '.join(data.omitted)}.")
    lines += [f"No {role}: {reason}" for role, reason in found.missing.items()]
    for pair in found.paired:
        low, high = (100 * bound for bound in pair.difference_ci95)
        sure = "" if low > 0 or high < 0 else "; that may be chance"
        if pair.map_difference is not None and pair.map_difference_ci95 is not None:
            least, most = (100 * bound for bound in pair.map_difference_ci95)
            lines.append(
                f"{pair.first.capitalize()} over {pair.second} in mAP: "
                f"{100 * pair.map_difference:+.2f} points [95 %: {least:+.2f} to {most:+.2f}]."
            )
        lines.append(
            f"{pair.first.capitalize()} over {pair.second}: "
            f"{100 * pair.difference:+.2f} points [95 %: "
            f"{low:+.2f} to {high:+.2f}]; {pair.only_first} images only it gets right, "
            f"{pair.only_second} only "
            f"the {pair.second} (McNemar p = {pair.p_value:.2g}){sure}."
        )
    return [
        *lines,
        *_about_labels(found),
        *_about_temperatures(found),
        *_about_operating_points(found),
        *_about_corruptions(found),
        *_about_neighbours(found),
    ]


def _about_operating_points(found: EvaluationRecord) -> list[str]:
    if not (point := found.operating_point):
        return []
    target = point.asked.sensitivity
    cost = point.asked.miss_cost
    how = f"costs least where a miss costs as much as {cost:g} false alarms" if cost else ""
    if target is not None:
        how = f"has the fewest false alarms and finds {100 * target:g} %"
    lines = [
        f"At the operating point an image counts as {point.positive} from the probability "
        f"that {how}, on the run's {found.calibrated_on.validation} validation images. Results "
        "on other images vary as the intervals say."
    ]
    counts = next(iter(point.models.values())).validation  # the images are the same for each net
    if (least := _least(counts)) < FEW_TO_FIT:
        word = "are" if least == counts.found + counts.missed else "are not"
        lines.append(
            f"Of these validation images {least} {word} {point.positive}, which are too few: take "
            "the threshold as a guess."
        )
    return lines


def _least(counts: ThresholdMetrics) -> int:
    """Return the number of positives or of negatives, the smaller."""
    return min(counts.found + counts.missed, counts.false_alarms + counts.cleared)


def _about_labels(found: EvaluationRecord) -> list[str]:
    if not any(model.labels for model in found.models):
        return []
    lines = [
        "Accuracy is of images with all labels right. Each label of each image is a question of "
        "its own for NLL, Brier score, ECE, KL and temperature."
    ]
    if count := found.calibrated_on.validation:
        lines.append(
            f"Thresholds by class have the highest F1 on the run's {count} validation images."
        )
    tuned = next((model.labels.tuned for model in found.models if model.labels), None)
    points = zip(found.data.classes, tuned.per_class, strict=True) if tuned else ()
    few = [name for name, point in points if point and _least(point.validation) < FEW_TO_FIT]
    if few:
        more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
        lines.append(
            f"Fewer than {FEW_TO_FIT} of them have, or lack, some of the labels, which are too "
            f"few: take the thresholds of {', '.join(few[:SHOWN])}{more} as a guess."
        )
    return lines


def _about_temperatures(found: EvaluationRecord) -> list[str]:
    if reason := found.calibrated_on.reason:
        return [f"No temperature was fitted, as the run's validation part is not there: {reason}"]
    without = [model.role for model in found.models if model.calibrated is None]
    on = f"on the run's {found.calibrated_on.validation} validation images"
    if without:
        who = ", ".join(without)
        return [
            f"No temperature fits best {on} for {who}: right about all of them, or no better "
            f"than chance."
        ]
    few = (found.calibrated_on.validation or 0) < FEW_TO_FIT
    caution = ", which are too few: take them as a guess" if few else ""
    return [f"The temperatures were fitted {on}{caution}."]


def _about_corruptions(found: EvaluationRecord) -> list[str]:
    if not found.corruptions:
        return []
    mean = found.corruptions.mean
    means = ", ".join(f"{role} {100 * share:.2f} %" for role, share in mean.items())
    return [
        f"Mean accuracy under corruptions: {means}. Severities are those of CIFAR-10-C at all "
        f"image sizes (Hendrycks & "
        "Dietterich 2019), but the blur's width grows with the side above 32 pixels."
    ]


def _about_neighbours(found: EvaluationRecord) -> list[str]:
    if not (near := found.knn):
        return []
    said = ", ".join(f"{role} {100 * share:.2f} %" for role, share in near.accuracy.items())
    return [
        f"Accuracy of the {near.k} nearest of {near.images:,} labelled training images, by the "
        f"embedding before the last layer: {said}."
    ]


def as_markdown(found: EvaluationRecord) -> str:
    """Format `evaluation.md`: all results, and how to repeat them."""
    roles = found.roles
    env = found.environment
    parts = [
        [f"# Evaluation of {in_markdown(found.name)}"],
        _markdown(["", *roles], metric_rows(found)),
        [f"- {in_markdown(line)}" for line in sentences(found)],
        ["## Classes", "", "Precision / recall, in per cent."],
        _markdown(["class", "images", *roles], class_rows(found)),
        *_threshold_part(found),
        *(part for model in found.models for part in _confusion(model, found.data.classes)),
    ]
    if found.operating_point:
        parts += [
            ["## Operating point"],
            _markdown(["", *roles], point_rows(found.operating_point)),
        ]
    if found.corruptions:
        rows = corruption_rows(found, found.corruptions)
        parts += [["## Corruptions", "", "Accuracy in per cent."]]
        parts += [_markdown(["corruption", "severity", *roles], rows)]
    stages = ", ".join(f"{model.role} {model.stage}" for model in found.models)
    how = [
        "## How",
        "",
        f"- Command: {as_code(found.command)}",
        f"- Run: {as_code(found.run)}; stages {stages}.",
        "- Interval of the accuracy: Wilson. Of differences: bootstrap over the images; p: "
        "McNemar's exact test. Brier "
        "score: summed over the classes. ECE: 15 bins of equal width. Temperature: lowest NLL on "
        "validation.",
        f"- Finished {found.finished}, commit {found.git or 'unknown'}; Python "
        f"{env.python}, torch "
        f"{env.torch}, {env.device}.",
    ]
    return "\n\n".join("\n".join(part) for part in [*parts, how])


def _threshold_part(found: EvaluationRecord) -> list[list[str]]:
    if not (rows := threshold_rows(found)):
        return []
    head = ["## Thresholds", "", "Of highest F1 on validation, and what they give on these images."]
    return [head, _markdown(THRESHOLDS, rows)]


def _confusion(model: EvaluatedModel, classes: Sequence[str]) -> list[list[str]]:
    """Format the confusion matrix, or the ten most frequent confusions of many classes."""
    if model.labels:  # of classes that exclude each other
        return []
    counts = model.test.confusion
    if counts is not None and len(classes) <= SHOWN:
        rows = [[name, *map(str, row)] for name, row in zip(classes, counts, strict=True)]
        head = [
            f"## Predictions of the {model.role}",
            "",
            "Rows: the true class; columns: the chosen one; images.",
        ]
        return [head, _markdown(["", *classes], rows)]
    if counts is None:
        pairs = model.test.confused_pairs or []
        wrong = [(each.images, each.label, each.chosen) for each in pairs]
    else:
        wrong = [(n, t, c) for t, row in enumerate(counts) for c, n in enumerate(row) if t != c]
    most = sorted((each for each in wrong if each[0]), key=lambda each: -each[0])[:10]
    lines = [
        f"- {in_markdown(classes[t])} as {in_markdown(classes[c])}: {n} images" for n, t, c in most
    ]
    return [[f"## Most frequent confusions of the {model.role}", "", *lines]]


def _markdown(header: Sequence[str], rows: TextRows) -> list[str]:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(in_markdown(cell) for cell in line) + " |" for line in lines]


def _interval(share: float | None, ci95: Interval | None) -> str:
    if share is None or ci95 is None:
        return "-"
    low, high = ci95
    return f"{100 * share:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _f(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
