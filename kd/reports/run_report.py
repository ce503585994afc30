"""The report of a run: the models compared, and the effect of distillation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich import box
from rich.table import Table
from torch import Tensor

from kd.config.schema import Training
from kd.config.trainer import trial_note
from kd.data.base import DataModule
from kd.files.report_file import (
    SCHEMA,
    Columns,
    Comparison,
    DataReport,
    DuplicateCounts,
    EpochAccuracies,
    ModelReport,
    Report,
    SkippedFile,
    SoftLabels,
    TeacherImages,
)
from kd.files.stage_record import EpochMetrics
from kd.files.store import StageResult
from kd.log import number_of, short
from kd.measure.costs import latency, size_of
from kd.measure.metrics import FEW_IMAGES, paired_comparison, summary
from kd.reports.escape import as_code, escape_record
from kd.reports.label_doubts import doubt_lines, label_doubts
from kd.reports.omission import omitted_classes, omitted_lines
from kd.reports.provenance import provenance
from kd.reports.units import count_text, selection_data, training_images
from kd.shape import Shape
from kd.stages.chain import Role
from kd.stages.result import accuracies_by_epoch, load_net, logits_of, macs_of, name_of
from kd.teachers.diagnosis import concerns, knows_validation, other_order


def make_report(
    results: Mapping[Role, StageResult],
    logits: Mapping[Role, Tensor],
    data: DataModule,
    *,
    config: Training,
    command: str,
) -> Report:
    """Measure the stages' nets on the test part and compare them.

    Args:
        results: finished stage of each role.
        logits: per role, [N, C] for the test images.
        config: the run's, checked.
        command: command line of the run.
    """
    teacher = logits.get("teacher")
    trial = bool(trial_note(config.trainer))
    models = [_model(role, results[role], logits[role], teacher, data, trial) for role in results]
    return Report(
        schema_number=SCHEMA,
        name=config.name,
        seed=config.seed,
        **provenance(command),
        config=config.model_dump(),
        data=_data(data),
        models=models,
        comparison=compare(models, logits, data.split.test.labels),
        omitted=omitted_classes(results, logits, data),
        teaching=teaching(models, results, data),
        warnings=warnings(models, results, data),
        doubts=label_doubts(results.get("teacher"), data) if config.pictures else None,
    )


def _data(data: DataModule) -> DataReport:
    split = data.split
    return DataReport(
        name=data.name,
        classes=list(split.classes),
        train=len(split.train),
        val=len(split.val),
        test=len(split.test),
        labels=int(data.for_stage("labels").split.train.has_label.sum()),
        omitted=list(dict.fromkeys(map(str, data.omit or ()))),
        val_labels=0 if data.val_labels == 0 else len(data.for_stage("transfer").split.val),
        unlabeled=len(split.unlabeled) if split.unlabeled else 0,
        teacher=_teacher_data(data),
        skipped=[SkippedFile(**each) for each in data.skipped],
        reading=asdict(data.reading),
        notes=data.notes,
        duplicates=DuplicateCounts(**asdict(data.duplicates)),
        license=data.license,
    )


def _teacher_data(data: DataModule) -> TeacherImages | None:
    """Return the images of the teacher's own source; None if it has none."""
    if data.teacher_data is None:
        return None
    other = data.teacher_source
    train = len(other.split.train)
    val = len(other.split.val)
    return TeacherImages(name=f"{other.name} in {other.root}", train=train, val=val)


def _model(
    role: Role,
    stage: StageResult,
    logits: Tensor,
    teacher: Tensor | None,
    data: DataModule,
    trial: bool,
) -> ModelReport:
    net = load_net(stage)
    record = stage.record
    size = size_of(net)
    shape = Shape.of(record.spec.shape)
    return ModelReport(
        role=role,
        net=name_of(stage),
        params=size.params,
        macs=macs_of(stage, net),
        bytes=size.bytes,
        latency_ms=latency(net, shape, seconds=0, least=2) if trial else latency(net, shape),
        test=summary(logits, data.split.test.labels, teacher),
        test_by_epoch=accuracies_by_epoch(stage, logits, data),
        val=EpochAccuracies(best=record.val.accuracy("best"), last=record.val.accuracy("last")),
        stage=stage.key,
        training_params=record.training_params,
        step_ms=_step_ms(stage),
        precision=str(precision) if (precision := record.spec.trainer.get("precision")) else None,
        devices=record.devices,
        batch_size_per_device=record.spec.batch_size // record.devices or None,
        epochs=record.total.epochs,
        seconds=record.total.seconds,
        history=columns(record.history),
    )


def columns(history: Sequence[EpochMetrics]) -> Columns:
    """Return the metrics of a stage's epochs as columns: `epoch` (from 0), `val/acc`, ..."""
    names = dict.fromkeys(name for row in history for name in row)
    return {name: [row.get(name) for row in history] for name in names}


def _step_ms(stage: StageResult) -> float | None:
    """Return the time per optimiser step including validation, in ms; None without steps."""
    steps = stage.record.steps
    return 1000 * stage.record.seconds / steps if steps else None


def compare(
    models: Sequence[ModelReport], logits: Mapping[Role, Tensor], labels: Tensor
) -> Comparison:
    """Compute the effect of distillation, and the student's costs relative to the teacher's.

    `gain` is the accuracy of student minus baseline, paired over the test images; `lead` that of
    teacher minus baseline. `gap_closed` is gain / lead, null unless the teacher is ahead.
    `retention` is the student's accuracy over the teacher's, null if the teacher may be no better
    than chance. `speedup` is the teacher's latency and `compression` the teacher's parameters, each
    over the student's.

    Args:
        models: their entries in the report.
        logits: per role, [N, C].
        labels: int64 [N].
    """
    by_role = {model.role: model for model in models}
    student, baseline, teacher = (by_role.get(role) for role in ("student", "baseline", "teacher"))
    ahead = (
        paired_comparison(logits["teacher"], logits["baseline"], labels)
        if teacher and baseline
        else None
    )
    won = (
        paired_comparison(logits["student"], logits["baseline"], labels)
        if student and baseline
        else None
    )
    gap_closed = retention = speedup = compression = None
    if won and teacher and baseline:
        gap = teacher.test.accuracy - baseline.test.accuracy
        gap_closed = won.gain / gap if gap > 0 else None
    if student and teacher:
        if teacher.test.accuracy_ci95[0] > 1 / logits["teacher"].shape[1]:
            retention = student.test.accuracy / teacher.test.accuracy
        speedup = teacher.latency_ms.median / student.latency_ms.median
        compression = teacher.params / student.params or None
    return Comparison(
        gain=won.gain if won else None,
        gain_ci95=won.gain_ci95 if won else None,
        p_value=won.p_value if won else None,
        lead=ahead.gain if ahead else None,
        lead_ci95=ahead.gain_ci95 if ahead else None,
        gap_closed=gap_closed,
        retention=retention,
        speedup=speedup,
        compression=compression,
    )


def teaching(
    models: Sequence[ModelReport], results: Mapping[Role, StageResult], data: DataModule
) -> SoftLabels | None:
    """Return the measures of the student's soft labels, and warnings about them."""
    taught = results["student"].record.taught if "student" in results else {}
    if not taught:
        return None
    baseline = next((model.val.best for model in models if model.role == "baseline"), None)
    if _out_of_order(results, data):  # its accuracy means nothing then
        baseline = None
    return SoftLabels(**taught, concerns=concerns(taught, len(data.classes), baseline))


def _out_of_order(results: Mapping[Role, StageResult], data: DataModule) -> str | None:
    teacher = results.get("teacher")
    val = data.split.val
    if teacher is None or not teacher.record.loaded or not val or val.multilabel:
        return None
    return other_order(logits_of(teacher, data, val), val.labels, data.classes)


def warnings(
    models: Sequence[ModelReport], results: Mapping[Role, StageResult], data: DataModule
) -> list[str]:
    """List oddities of a teacher trained elsewhere, now that validation and test are known."""
    teacher = results.get("teacher")
    chosen_on = data.split.val
    if teacher is None or not teacher.record.loaded or not chosen_on or chosen_on.multilabel:
        return []
    order = _out_of_order(results, data)
    split = data.split
    by_role = {model.role: model for model in models}
    logits = logits_of(teacher, data, split.val)
    val, test = (
        (each.accuracy, *each.accuracy_ci95)
        for each in (summary(logits, split.val.labels), by_role["teacher"].test)
    )
    taught = results["student"].record.taught if "student" in results else {}
    baseline = by_role.get("baseline")
    on_val = baseline.val.best if baseline else None
    gap = on_val - baseline.test.accuracy if baseline and on_val is not None else 0.0
    found = (
        order,
        knows_validation(val, test, gap, taught.get("entropy"), len(data.classes)),
    )
    return [each for each in found if each]


COLUMNS = ("", "net", "params", "MACs", "size", "latency", "test accuracy", "agrees")


def rows(report: Report) -> list[list[str]]:
    """Format the comparison, one row per model, in the order of `COLUMNS`."""
    table = []
    for model in report.models:
        low, high = model.test.accuracy_ci95
        agreement = model.test.agreement
        table.append(
            [
                model.role,
                model.net,
                short(model.params),
                count_text(model.macs),
                f"{short(model.bytes)}B",
                f"{model.latency_ms.median:.2f} ms",
                f"{100 * model.test.accuracy:.2f} % [{100 * low:.1f}, {100 * high:.1f}]",
                "" if agreement is None else f"{100 * agreement:.1f} %",
            ]
        )
    return table


def verdict(report: Report) -> list[str]:
    """State the comparison in sentences, for the models that were run."""
    found = report.comparison
    lines = trial_note(report.trainer)
    models = [each for role in ("student", "baseline") if (each := report.model(role))]
    if len(models) == 2 and not any(each.epochs for each in models):
        lines.append(
            "Nothing was learned (epochs=0): the figures are those of the nets as they start, and "
            "no gain of distillation."
        )
    elif found.gain is not None and found.gain_ci95 is not None and found.p_value is not None:
        low, high = (100 * bound for bound in found.gain_ci95)
        sure = "" if low > 0 or high < 0 else "; on these test images that may be chance"
        lines.append(
            f"Gain of distillation: {100 * found.gain:+.2f} points [95 %: {low:+.2f} to "
            f"{high:+.2f}; "
            f"McNemar p = {found.p_value:.2g}]{sure}."
        )
        if report.data.test < FEW_IMAGES:
            lines.append(
                f"{number_of(report.data.test, 'test image')} are too few to tell nets apart."
            )
        if said := _gap(found):
            lines.append(said)
    if found.speedup is not None and found.compression is not None:
        size = _times(found.compression, *(f"{w} parameters" for w in ("fewer", "more", "as many")))
        lines.append(
            f"Next to the teacher: {_times(found.speedup, 'faster', 'slower', 'as fast')}, "
            f"{size}"
            f"{_retention(report)}."
        )
    lines += [line for model in report.models if (line := _several(model))]
    return [*test_overlap(report.data), *lines, *omitted_lines(report), *cautions(report)]


def _several(model: ModelReport) -> str | None:
    """State the metrics of multi-label data; None for other data."""
    test = model.test
    if test.f1_micro is None:
        return None
    words = {"mAP": test.map, "macro F1": test.f1_macro, "micro F1": test.f1_micro}
    words["AUROC"] = test.auroc
    said = ", ".join(f"{k} {100 * v:.1f} %" for k, v in words.items() if v is not None)
    return f"Of single labels, the {model.role}: {said}. Accuracy is of images with all right."


def cautions(report: Report) -> list[str]:
    """List warnings about the teacher and its soft labels."""
    return [*report.warnings, *(report.teaching.concerns if report.teaching else ())]


def test_overlap(data: DataReport) -> list[str]:
    """Warn of test images that were used for training or selection."""
    found = data.duplicates
    return [
        f"Of the {data.test} test images, {count} are in {part} too, pixel for pixel: the "
        f"accuracies say less of "
        "new images."
        for part in ("train", "validation", "unlabeled")
        if (count := found.across.get(f"test in {part}")) and not found.dropped.get(part)
    ]


def _gap(found: Comparison) -> str | None:
    """State the share of the teacher's lead that is closed, if the lead is significant."""
    closed = found.gap_closed
    interval = found.lead_ci95
    if closed is None:
        compared = found.gain is not None and found.speedup is not None
        no_gap = "The teacher is not ahead of the baseline, so there was no gap to close."
        return no_gap if compared else None
    if found.lead is not None and interval and interval[0] <= 0:
        return (
            f"The teacher's lead over the baseline ({100 * found.lead:+.2f} points) may be "
            f"chance on these test "
            "images, so the share of it that is closed has no meaning."
        )
    if closed <= 0:
        return "None of the teacher's lead over the baseline is closed."
    return f"Of the teacher's lead over the baseline, {100 * closed:.0f} % is closed."


def _retention(report: Report) -> str:
    """Compare the student's accuracy with the teacher's, as the end of a sentence; may be empty."""
    kept = report.comparison.retention
    if kept is None:
        return ""
    if kept <= 1:
        return f", keeping {100 * kept:.1f} % of its accuracy"
    accuracy = {model.role: model.test.accuracy for model in report.models}
    return f", {100 * (accuracy['student'] - accuracy['teacher']):.2f} points more accurate"


def _times(ratio: float, above: str, below: str, same: str) -> str:
    """Format a ratio in words, to one digit."""
    larger, word = (ratio, above) if ratio >= 1 else (1 / ratio, below)
    return same if round(larger, 1) == 1 else f"{larger:.1f} times {word}"


def as_table(report: Report) -> Table:
    """Make the comparison table for the terminal, within 80 columns."""
    threads = number_of(report.environment.threads, "thread")
    about = f"[95 % interval] of accuracy; latency of one image on the CPU, {threads}"
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=about.replace("[", "\\[")
    )
    for i, column in enumerate(COLUMNS):
        table.add_column(
            column, justify="left" if i < 2 else "right", no_wrap=i != 1, overflow="fold"
        )
    for row in rows(report):
        table.add_row(*(cell.replace(" [", "\n\\[") for cell in row))
    return table


def as_markdown(report: Report) -> str:
    """Format `report.md`: the comparison, and everything needed to read and repeat it."""
    command, report = as_code(report.command), escape_record(report)
    data = report.data
    chosen = selection_data(report)
    env = report.environment
    lines = [
        f"# {report.name}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join("---" if i < 2 else "---:" for i in range(len(COLUMNS))) + "|",
        *("| " + " | ".join(row) + " |" for row in rows(report)),
        "",
        *(f"- {line}" for line in verdict(report)),
        "",
        "## How",
        "",
        f"- Command: {command}",
        f"- Data: {data.name}, {len(data.classes)} classes; {training_images(data)}; "
        f"{data.val} validation and {data.test} test images. {chosen} "
        "Test was read once for each model.",
        *(f"- Left out, not to be decoded: {each.file}: {each.reason}" for each in data.skipped),
        *(f"- Of the data: {note}." for note in data.notes),
        f"- Seed {report.seed}, commit {report.git or 'unknown'}, finished {report.finished}.",
        f"- Python {env.python}, torch {env.torch}, Lightning {env.lightning}, {env.device}; "
        f"latency on the CPU with {number_of(env.threads, 'thread')}.",
        *(
            f"- {model.role}: {number_of(model.epochs, 'epoch')} in {model.seconds:.0f} s"
            f"{_in(model)}{_by_epoch(model)}, stage {model.stage}."
            for model in report.models
        ),
        *_numbers_from(report.config),
        *_only_in_training(report.models),
        *_soft_labels(report.teaching),
        *doubt_lines(report),
        "",
    ]
    return "\n".join(lines)


def _by_epoch(model: ModelReport) -> str:
    """Format the accuracies of the last epoch and of the one best on validation."""

    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.2f} %"

    val = model.val
    test = model.test_by_epoch
    text = ""
    if val.best is not None:
        text += f", validation accuracy {percent(val.best)} at best"
        text += f" and {percent(val.last)} at the end"
    if test.last is not None:
        text += f", test accuracy {percent(test.last)} of the last epoch"
        if test.best is not None:
            text += f" and {percent(test.best)} of the epoch best on validation"
    return text


def _in(model: ModelReport) -> str:
    numbers = f" in {model.precision}" if model.precision else ""
    if model.devices == 1:
        return numbers
    return f"{numbers} on {model.devices} devices, {model.batch_size_per_device} images each a step"


def _numbers_from(config: Mapping[str, object]) -> list[str]:
    source = config.get("numbers_from")
    return [f"- The loss's numbers, unless typed: {source}."] if source else []


def _only_in_training(models: Sequence[ModelReport]) -> list[str]:
    added = {model.role: model.training_params for model in models}
    return [
        f"- {role}: training had {count:,} parameters more, which are no part of the net."
        for role, count in added.items()
        if count
    ]


def _soft_labels(taught: SoftLabels | None) -> list[str]:
    if not taught:
        return []
    return [
        f"- The soft labels that the student learned from, on training views: entropy "
        f"{taught.entropy:.3f} nats, "
        f"{taught.label_probability:.3f} for the true class, divergence "
        f"{taught.instability:.3f} nats between "
        "two views of an image."
    ]
