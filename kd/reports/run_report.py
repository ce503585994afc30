"""The report of a run: the models compared, and the effect of distillation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from torch import Tensor

from kd.config.trainer import trial_note
from kd.data.base import DataModule
from kd.files.report_file import SCHEMA
from kd.files.store import StageResult
from kd.measure.costs import cost, latency
from kd.measure.metrics import paired_comparison, summary
from kd.reports.escape import as_code, escape_record
from kd.reports.omission import omitted_classes, omitted_lines
from kd.reports.provenance import provenance_of
from kd.reports.units import selection_data, short, training_images
from kd.stages.chain import Role
from kd.stages.result import load_net, logits_of, macs_of, name_of
from kd.teachers.diagnosis import concerns, knows_validation, other_order


def make_report(
    done: Mapping[Role, StageResult],
    logits: Mapping[Role, Tensor],
    data: DataModule,
    *,
    name: str,
    seed: int,
    command: str,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Measure the stages' nets on the test part and compare them; returns the contents of
    `report.json`.

    Args:
        done: finished stage of each role.
        logits: per role, [N, C] for the test images.
        command: command line of the run.
        config: the run's checked config, plain values only.
    """
    split = data.split
    teacher = logits.get("teacher")
    passes = {"seconds": 0.0, "least": 2} if trial_note(config["trainer"]) else {}
    models = [_model(role, done[role], logits[role], teacher, data, passes) for role in done]
    return {
        "schema": SCHEMA,
        "name": name,
        "seed": seed,
        **provenance_of(command),
        "config": dict(config),
        "data": {
            "name": data.name,
            "classes": list(split.classes),
            "train": len(split.train),
            "val": len(split.val),
            "test": len(split.test),
            "labels": int((data.for_stage("labels").split.train.labels >= 0).sum()),
            "omitted": list(map(str, data.omit or ())),
            "val_labels": 0 if data.val_labels == 0 else len(data.for_stage("transfer").split.val),
            "unlabeled": len(split.unlabeled) if split.unlabeled else 0,
            "teacher": _teacher_data(data),
            "skipped": data.skipped,
            "reading": asdict(data.reading),
            "notes": data.notes,
            "duplicates": asdict(data.duplicates),
            "license": data.license,
        },
        "models": models,
        "comparison": compare(models, logits, split.test.labels),
        "omitted": omitted_classes(done, logits, data),
        "teaching": teaching(models, done, data),
        "warnings": warnings(models, done, data),
    }


def _teacher_data(data: DataModule) -> dict[str, Any] | None:
    """Images of the other source that the teacher learned from; None where there is none."""
    other = data.for_stage("all")
    if other is data:
        return None
    train, val = len(other.split.train), len(other.split.val)
    return {"name": f"{other.name} in {other.root}", "train": train, "val": val}


def _model(
    role: Role,
    stage: StageResult,
    logits: Tensor,
    teacher: Tensor | None,
    data: DataModule,
    passes: Mapping[str, Any],
) -> dict[str, Any]:
    net, shape = load_net(stage), data.shape
    return {
        "role": role,
        "net": name_of(stage),
        **cost(net, macs_of(stage, net)),
        "latency_ms": latency(net, shape, **passes),
        "test": summary(logits, data.split.test.labels, teacher),
        "val": {which: row["val/acc"] for which, row in stage.record["val"].items()},
        "stage": stage.key,
        # Missing in older stages
        "training_params": stage.record.get("training_params", 0),
        "step_ms": _step_ms(stage),
        "precision": stage.record["spec"].get("trainer", {}).get("precision"),
        "epochs": stage.record["total"]["epochs"],
        "seconds": stage.record["total"]["seconds"],
        "history": columns(stage.record["history"]),
    }


def columns(history: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Return the metrics of a stage's epochs as columns: `epoch` (from 0), `val/acc`, ...; null if
    missing.
    """
    names = dict.fromkeys(name for row in history for name in row)
    return {name: [row.get(name) for row in history] for name in names}


def _step_ms(stage: StageResult) -> float | None:
    """Return the time per optimiser step including validation, in ms; None without steps."""
    steps = stage.record.get("steps", 0)
    return 1000 * stage.record["seconds"] / steps if steps else None


def compare(
    models: Sequence[Mapping[str, Any]], logits: Mapping[Role, Tensor], labels: Tensor
) -> dict[str, Any]:
    """Compute the effect of distillation, and the student's costs relative to the teacher's; null
    if a model is missing.

    `gain` is the accuracy of student minus baseline, paired over the test images; `lead` that of
    teacher minus baseline. `gap_closed` is gain / lead, null unless the teacher is ahead.
    `retention` is the student's accuracy over the teacher's, null if the teacher may be no better
    than chance. `speedup` is the teacher's latency and `compression` the teacher's parameters, each
    over the student's.
    """
    by_role = {model["role"]: model for model in models}
    student, baseline, teacher = (by_role.get(role) for role in ("student", "baseline", "teacher"))
    found: dict[str, Any] = dict.fromkeys(
        (
            "gain",
            "gain_ci95",
            "p_value",
            "lead",
            "lead_ci95",
            "gap_closed",
            "retention",
            "speedup",
            "compression",
        )
    )
    if teacher and baseline:
        ahead = paired_comparison(logits["teacher"], logits["baseline"], labels)
        found |= {"lead": ahead["gain"], "lead_ci95": ahead["gain_ci95"]}
    if student and baseline:
        found |= paired_comparison(logits["student"], logits["baseline"], labels)
        if teacher and (gap := teacher["test"]["accuracy"] - baseline["test"]["accuracy"]) > 0:
            found["gap_closed"] = found["gain"] / gap
    if student and teacher:
        if teacher["test"]["accuracy_ci95"][0] > 1 / logits["teacher"].shape[1]:
            found["retention"] = student["test"]["accuracy"] / teacher["test"]["accuracy"]
        found["speedup"] = teacher["latency_ms"]["median"] / student["latency_ms"]["median"]
        found["compression"] = teacher["params"] / student["params"]
    return found


def teaching(
    models: Sequence[Mapping[str, Any]], done: Mapping[Role, StageResult], data: DataModule
) -> dict[str, Any] | None:
    """Return the measures of the student's soft labels, and warnings about them."""
    taught = done["student"].record["taught"] if "student" in done else {}
    if not taught:
        return None
    baseline = next((model["val"]["best"] for model in models if model["role"] == "baseline"), None)
    if _out_of_order(done, data):  # its accuracy means nothing then
        baseline = None
    return {**taught, "concerns": concerns(taught, len(data.classes), baseline)}


def _out_of_order(done: Mapping[Role, StageResult], data: DataModule) -> str | None:
    teacher, val = done.get("teacher"), data.split.val
    if teacher is None or not teacher.record.get("loaded"):
        return None
    return other_order(logits_of(teacher, data, val), val.labels, data.classes)


def warnings(
    models: Sequence[Mapping[str, Any]], done: Mapping[Role, StageResult], data: DataModule
) -> list[str]:
    """List oddities of a teacher trained elsewhere, now that validation and test are known."""
    teacher = done.get("teacher")
    if teacher is None or not teacher.record.get("loaded") or not len(data.split.val):
        return []
    order = _out_of_order(done, data)
    split, by_role = data.split, {model["role"]: model for model in models}
    logits = logits_of(teacher, data, split.val)
    val, test = (
        (each["accuracy"], *each["accuracy_ci95"])
        for each in (summary(logits, split.val.labels), by_role["teacher"]["test"])
    )
    taught = done["student"].record["taught"] if "student" in done else {}
    baseline = by_role.get("baseline")
    gap = baseline["val"]["best"] - baseline["test"]["accuracy"] if baseline else 0.0
    found = (
        order,
        knows_validation(val, test, gap, taught.get("entropy"), len(data.classes)),
    )
    return [each for each in found if each]


COLUMNS = ("", "net", "params", "MACs", "size", "latency", "test accuracy", "agrees")


def rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Format the comparison, one row per model, in the order of `COLUMNS`."""
    table = []
    for model in report["models"]:
        low, high = model["test"]["accuracy_ci95"]
        agreement = model["test"]["agreement"]
        table.append(
            [
                model["role"],
                model["net"],
                short(model["params"]),
                short(model["macs"]),
                f"{short(model['bytes'])}B",
                f"{model['latency_ms']['median']:.2f} ms",
                f"{100 * model['test']['accuracy']:.2f} % [{100 * low:.1f}, {100 * high:.1f}]",
                "" if agreement is None else f"{100 * agreement:.1f} %",
            ]
        )
    return table


def verdict(report: Mapping[str, Any]) -> list[str]:
    """State the comparison in sentences, for the models that were run."""
    found, lines = report["comparison"], trial_note(report["config"].get("trainer", {}))
    if found["gain"] is not None:
        low, high = (100 * bound for bound in found["gain_ci95"])
        sure = "" if low > 0 or high < 0 else "; on these test images that may be chance"
        lines.append(
            f"Gain of distillation: {100 * found['gain']:+.2f} points [95 %: {low:+.2f} to "
            f"{high:+.2f}; "
            f"McNemar p = {found['p_value']:.2g}]{sure}."
        )
    if said := _gap(found):
        lines.append(said)
    if found["speedup"] is not None:
        size = _times(
            found["compression"], *(f"{w} parameters" for w in ("fewer", "more", "as many"))
        )
        lines.append(
            f"Next to the teacher: {_times(found['speedup'], 'faster', 'slower', 'as fast')}, "
            f"{size}"
            f"{_retention(report)}."
        )
    return [*_test_overlap(report["data"]), *lines, *omitted_lines(report), *cautions(report)]


def cautions(report: Mapping[str, Any]) -> list[str]:
    """List warnings about the teacher and its soft labels."""
    return [*report.get("warnings", ()), *(report.get("teaching") or {"concerns": ()})["concerns"]]


def _test_overlap(data: Mapping[str, Any]) -> list[str]:
    """Warn of test images that were used for training or selection."""
    found = data.get("duplicates") or {"across": {}, "dropped": {}}
    return [
        f"Of the {data['test']} test images, {count} are in {part} too, pixel for pixel: the "
        f"accuracies say less of "
        "new images."
        for part in ("train", "validation")
        if (count := found["across"].get(f"test in {part}")) and not found["dropped"].get(part)
    ]


def _gap(found: Mapping[str, Any]) -> str | None:
    """State the share of the teacher's lead that is closed, if the lead is significant."""
    closed, interval = found["gap_closed"], found.get("lead_ci95")
    if closed is None:
        compared = found["gain"] is not None and found["speedup"] is not None
        no_gap = "The teacher is not ahead of the baseline, so there was no gap to close."
        return no_gap if compared else None
    if interval and interval[0] <= 0:
        return (
            f"The teacher's lead over the baseline ({100 * found['lead']:+.2f} points) may be "
            f"chance on these test "
            "images, so the share of it that is closed has no meaning."
        )
    if closed <= 0:
        return "None of the teacher's lead over the baseline is closed."
    return f"Of the teacher's lead over the baseline, {100 * closed:.0f} % is closed."


def _retention(report: Mapping[str, Any]) -> str:
    """Compare the student's accuracy with the teacher's, as the end of a sentence; may be empty."""
    kept = report["comparison"]["retention"]
    if kept is None:
        return ""
    if kept <= 1:
        return f", keeping {100 * kept:.1f} % of its accuracy"
    accuracy = {model["role"]: model["test"]["accuracy"] for model in report["models"]}
    return f", {100 * (accuracy['student'] - accuracy['teacher']):.2f} points more accurate"


def _times(ratio: float, above: str, below: str, same: str) -> str:
    """Format a ratio in words, to one digit."""
    larger, word = (ratio, above) if ratio >= 1 else (1 / ratio, below)
    return same if round(larger, 1) == 1 else f"{larger:.1f} times {word}"


def as_table(report: Mapping[str, Any]) -> Table:
    """Make the comparison table for the terminal, within 80 columns."""
    threads = report["environment"]["threads"]
    about = f"[95 % interval] of accuracy; latency of one image on the CPU, {threads} threads"
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


def as_markdown(report: Mapping[str, Any]) -> str:
    """Format `report.md`: the comparison, and everything needed to read and repeat it."""
    command, report = as_code(report["command"]), escape_record(report)
    data, env = report["data"], report["environment"]
    lines = [
        f"# {report['name']}",
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
        f"- Data: {data['name']}, {len(data['classes'])} classes; {training_images(data)}; "
        f"{data['val']} validation and {data['test']} test images. {selection_data(data)} "
        "Test was read once for each model.",
        *(
            f"- Left out, not to be decoded: {each['file']}: {each['reason']}"
            for each in data.get("skipped", ())
        ),
        *(f"- Of the data: {note}." for note in data.get("notes", ())),
        f"- Seed {report['seed']}, commit {report['git'] or 'unknown'}, finished "
        f"{report['finished']}.",
        f"- Python {env['python']}, torch {env['torch']}, Lightning {env['lightning']}, "
        f"{env['device']}; "
        f"latency on the CPU with {env['threads']} threads.",
        *(
            f"- {model['role']}: {model['epochs']} epochs in {model['seconds']:.0f} "
            f"s{_in(model)}, validation accuracy "
            f"{100 * model['val']['best']:.2f} % at best and {100 * model['val']['last']:.2f} % "
            f"at the end, "
            f"stage {model['stage']}."
            for model in report["models"]
        ),
        *_numbers_from(report["config"]),
        *_only_in_training(report["models"]),
        *_soft_labels(report["teaching"]),
        "",
    ]
    return "\n".join(lines)


def _in(model: Mapping[str, Any]) -> str:
    precision = model.get("precision")  # missing in older reports
    return f" in {precision}" if precision else ""


def _numbers_from(config: Mapping[str, Any]) -> list[str]:
    source = config.get("numbers_from")
    return [f"- The loss's numbers, unless typed: {source}."] if source else []


def _only_in_training(models: Sequence[Mapping[str, Any]]) -> list[str]:
    added = {model["role"]: model.get("training_params", 0) for model in models}
    return [
        f"- {role}: training had {count:,} parameters more, which are no part of the net."
        for role, count in added.items()
        if count
    ]


def _soft_labels(taught: Mapping[str, Any] | None) -> list[str]:
    if not taught:
        return []
    return [
        f"- The soft labels that the student learned from, on training views: entropy "
        f"{taught['entropy']:.3f} nats, "
        f"{taught['label_probability']:.3f} for the true class, divergence "
        f"{taught['instability']:.3f} nats between "
        "two views of an image."
    ]
