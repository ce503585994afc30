"""Evaluation of a finished run: images, metrics of each net, and nets in pairs."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn

from kd.config.trainer import trial_note
from kd.data.base import DataModule, Images
from kd.data.rendering import as_read
from kd.data.views import normalize, to_unit
from kd.errors import UserError, nearest
from kd.evaluation.evaluation_set import EvaluationSet, of_other, of_own
from kd.evaluation.evaluation_text import as_markdown, sentences, tables
from kd.evaluation.label_evaluation import evaluate_labels, with_map
from kd.evaluation.requests import Evaluate, OperatingPoint
from kd.files.evaluation_file import (
    SCHEMA,
    CalibratedMetrics,
    CalibrationImages,
    ClassMetrics,
    CorruptionAccuracies,
    EvaluatedImages,
    EvaluatedMetrics,
    EvaluatedModel,
    EvaluationRecord,
    FlipMetrics,
    ModelThreshold,
    NeighbourAccuracies,
    OperatingPoints,
    PairedDifference,
    RequestedThreshold,
)
from kd.files.records import Record, read_record
from kd.files.report_file import Report, SkippedFile
from kd.files.writing import whole
from kd.log import waiting
from kd.measure.calibration import fit_temperature
from kd.measure.corruptions import corrupt
from kd.measure.knn import PooledEmbedding, knn_accuracy
from kd.measure.metrics import (
    ask,
    decisions,
    is_right,
    paired_comparison,
    probability_metrics,
    row_blocks,
    single_answers,
    summary,
)
from kd.measure.operating_point import (
    at_threshold,
    by_cost,
    by_sensitivity,
    has_class,
    positive_scores,
)
from kd.nets.build import normalization_of
from kd.reports.provenance import provenance
from kd.runs.reader import FinishedRun, own_data

PAIRS = (("student", "baseline"), ("student", "teacher"), ("baseline", "teacher"))
UNSCALED = ((0.0,), (1.0,))
RoleLogits = tuple[Mapping[str, Tensor], Tensor]  # each role's logits [N, C], and the labels [N]


def evaluate(finished: FinishedRun, config: Evaluate, command: str) -> Path:
    """Evaluate a run's nets; print the results, and write `evaluation.json` and `evaluation.md`.

    Args:
        command: command line that repeats it.

    Returns:
        the file `evaluation.json`, or `evaluation_<data>.json` for another data set than the run's.

    Raises:
        UserError: the run's files or the data are missing, or do not fit each other.
    """
    folder = finished.room(config.out)
    classes = finished.report.data.classes
    nets, missing = finished.nets()
    other = "_target_" in config.data
    cache = f"{config.output_dir}/cache"
    own, lacking = own_data(finished, config.data, cache, needed=not other or bool(config.knn))
    reading = config.read_as(finished.report.data.reading)
    to_others = config.data, classes, finished.shape, own, reading, finished.report.multilabel
    evaluated_on = of_other(*to_others) if other else of_own(own)
    images = evaluated_on.images
    val = own.split.val if own else None
    if own and not own.split.val:
        lacking = "data.val_fraction=0 held out no images"
    wanted = config.operating_point
    if wanted.is_requested:
        check_point(wanted, classes, val, lacking)
    reads = {role: finished.reads(role) for role in nets}
    said = ask_nets(nets, images, reads)
    calibration = (ask_nets(nets, val, reads), val.labels) if val else None
    seen = {role: as_read(images, reads[role]) for role in nets}
    mirrored = {role: (net, seen[role]) for role, net in nets.items() if config.flips}
    found = EvaluationRecord(
        schema_number=SCHEMA,
        run=str(finished.folder),
        **provenance(command),
        name=finished.report.name,
        trial=bool(trial_note(finished.report.trainer)),
        data=_about(evaluated_on, finished.report),
        missing=missing,
        calibrated_on=CalibrationImages(validation=len(val or ()), reason=lacking),
        models=evaluate_nets(mirrored, said, finished.report, images, calibration),
        paired=[versus(a, b, said, images.labels) for a, b in PAIRS if {a, b} <= set(said)],
    )
    near = config.knn and own and neighbours(config.knn, nets, images, finished, own)
    more: dict[str, Record] = {"knn": near} if near else {}
    if wanted.is_requested:
        assert calibration is not None  # refused earlier otherwise
        more["operating_point"] = operating_points(
            wanted, classes, (said, images.labels), calibration
        )
    if config.corruptions:
        if sized := [role for role in nets if reads[role]]:
            raise UserError(
                f"corruptions: the {sized[0]} has images of its own size, and a corruption is so "
                "many pixels wide; accepted is corruptions=[]"
            )
        more["corruptions"] = under_corruptions(
            nets, images, config.corruptions, sorted(set(config.severities)), config.seed
        )
    return _publish(found.model_copy(update=more), folder)


def neighbours(
    k: int,
    nets: Mapping[str, nn.Module],
    images: Images,
    finished: FinishedRun,
    own: DataModule,
) -> NeighbourAccuracies:
    """Compute the accuracy of a vote of nearest training images, by role.

    Those vote whose label the student may see.

    Raises:
        UserError: a net has no embedding, there are fewer images than `k`, or an image may have
            several labels.
    """
    train = own.for_stage("labels").training_images
    if train.multilabel:
        raise UserError(
            f"knn: found {k}, but with data.task=multilabel neighbours have no class to vote for; "
            "accepted is null"
        )
    if k > len(train):
        raise UserError(f"knn: found {k}; accepted are 1 to {len(train)}, the training images")
    found = {}
    for role, net in nets.items():
        embed = PooledEmbedding(net, finished.shape_of(role), "knn")
        reads = finished.reads(role)
        known, asked = (
            (ask(embed, as_read(each, reads), normalization_of(net, UNSCALED)), each.labels)
            for each in (train, images)
        )
        found[role] = knn_accuracy(known, asked, k)
    return NeighbourAccuracies(k=k, images=len(train), accuracy=found)


def _about(evaluated_on: EvaluationSet, report: Report) -> EvaluatedImages:
    """Describe the evaluation set."""
    return EvaluatedImages(
        name=evaluated_on.name,
        root=evaluated_on.root,
        part=evaluated_on.part,
        other=evaluated_on.other,
        left_out=evaluated_on.left_out,
        skipped=[SkippedFile(**each) for each in evaluated_on.skipped],
        images=len(evaluated_on.images),
        fingerprint=evaluated_on.images.fingerprint,
        classes=report.data.classes,
        omitted=report.data.omitted,
    )


def ask_nets(
    nets: Mapping[str, nn.Module],
    images: Images,
    reads: Mapping[str, Mapping[str, object] | None],
) -> dict[str, Tensor]:
    """Compute each net's logits [N, C] for the images, by role.

    Args:
        reads: how each role's net reads images; see `kd.data.rendering.as_read`.
    """
    return {
        role: ask(net, as_read(images, reads[role]), normalization_of(net, UNSCALED))
        for role, net in nets.items()
    }


def evaluate_nets(
    mirrored: Mapping[str, tuple[nn.Module, Images]],
    logits: Mapping[str, Tensor],
    report: Report,
    images: Images,
    calibration: RoleLogits | None,
) -> list[EvaluatedModel]:
    """Compute each net's metrics.

    Args:
        mirrored: by role the net, and the images that it is asked about as mirror images too.
        logits: per role, [N, C].
        report: of the run.
        images: N of them.
        calibration: data for fitting temperatures; None fits none.
    """
    known = {model.role: model for model in report.models}
    found = []
    for role, each in logits.items():
        scaled = None
        on_val = (calibration[0][role], calibration[1]) if calibration else None
        if on_val:
            scaled = _calibration_metrics(each, images.labels, *on_val)
        found.append(
            EvaluatedModel(
                role=role,
                net=known[role].net,
                params=known[role].params,
                stage=known[role].stage,
                test=judge(each, images.labels, logits.get("teacher")),
                calibrated=scaled,
                flipped=_flip_metrics(*mirrored[role], each) if role in mirrored else None,
                labels=evaluate_labels(each, images.labels, on_val) if images.multilabel else None,
            )
        )
    return found


def check_point(
    wanted: OperatingPoint, classes: Sequence[str], val: Images | None, lacking: str | None
) -> None:
    """Refuse an operating point that cannot be chosen, before any net runs.

    Raises:
        UserError: there is no such class, or no validation image of it.
    """
    label = _label(wanted.positive, classes, several=bool(val and val.multilabel))
    where = f"operating_point: needs validation images of {classes[label]}"
    if not val:
        raise UserError(f"{where}, and the run's validation part is not there: {lacking}")
    if not has_class(val.labels, label).any():
        raise UserError(f"{where}, and the run's validation part has none")


def operating_points(
    wanted: OperatingPoint, classes: Sequence[str], test: RoleLogits, validation: RoleLogits
) -> OperatingPoints:
    """Choose each net's threshold on validation; evaluate it there and on these images."""
    several = test[1].ndim == 2
    label = _label(wanted.positive, classes, several)
    truth, there = (has_class(labels, label) for _, labels in (test, validation))
    models = {}
    for role in test[0]:
        scores, on_val = (
            positive_scores(said[role], label, several) for said, _ in (test, validation)
        )
        if wanted.miss_cost is not None:
            threshold = by_cost(on_val, there, wanted.miss_cost)
        else:
            assert wanted.sensitivity is not None
            threshold = by_sensitivity(on_val, there, wanted.sensitivity)
        models[role] = ModelThreshold(
            threshold=float(torch.tensor(threshold, dtype=torch.float64).sigmoid()),
            validation=at_threshold(on_val, there, threshold),
            test=at_threshold(scores, truth, threshold),
        )
    asked = RequestedThreshold(sensitivity=wanted.sensitivity, miss_cost=wanted.miss_cost)
    return OperatingPoints(positive=classes[label], asked=asked, models=models)


def _label(positive: str | None, classes: Sequence[str], several: bool = False) -> int:
    """Return the label of the positive class; by default the second of two that exclude others."""
    if positive is None and len(classes) == 2 and not several:
        return 1
    if positive not in classes:
        raise UserError(
            f"operating_point.positive: found {positive!r}; accepted is one of the classes, "
            f"{', '.join(classes[:20])}"
            f"{' ...' if len(classes) > 20 else ''}{nearest(str(positive), classes)}"
        )
    return classes.index(positive)


def judge(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> EvaluatedMetrics:
    """Compute all metrics of logits [N, C] against labels, int64 [N], or 0 and 1 [N, C].

    Args:
        teacher: teacher logits [N, C], or None.
    """
    truth = labels.numpy()
    chosen = decisions(logits, labels.ndim == 2).numpy()
    precision, recall, _, support = precision_recall_fscore_support(
        truth, chosen, labels=range(logits.shape[1]), zero_division=np.nan
    )
    per_class = [
        ClassMetrics(
            support=int(n),
            precision=None if np.isnan(p) else float(p),
            recall=None if np.isnan(r) else float(r),
        )
        for n, p, r in zip(support, precision, recall, strict=True)
    ]
    found = summary(logits, labels, teacher).plain()
    kl = None
    if teacher is not None:
        kl = _kl(*(single_answers(each, labels)[0] for each in (logits, teacher)))
    own = {"kl": kl, "per_class": per_class}
    return EvaluatedMetrics.model_validate(found | own)


def _kl(logits: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for _, (own, other) in row_blocks(logits, teacher):
        log_p = own.log_softmax(1)
        log_t = other.log_softmax(1)
        total += float(F.kl_div(log_p, log_t, reduction="sum", log_target=True))
    return max(0.0, total / len(logits))


def _flip_metrics(net: nn.Module, images: Images, logits: Tensor) -> FlipMetrics:
    """Compute the accuracy of the mean logits of each image and its mirror image."""
    other = ask(net, images, normalization_of(net, UNSCALED), mirrored=True)
    found = summary((logits + other) / 2, images.labels)
    return FlipMetrics(accuracy=found.accuracy, accuracy_ci95=found.accuracy_ci95, nll=found.nll)


def _calibration_metrics(
    logits: Tensor, labels: Tensor, on_val: Tensor, val_labels: Tensor
) -> CalibratedMetrics | None:
    """Return the metrics that temperature scaling changes; None if no temperature fits."""
    temperature = fit_temperature(*single_answers(on_val, val_labels))
    if temperature is None:
        return None
    found = probability_metrics(*single_answers(logits, labels), temperature).plain()
    return CalibratedMetrics.model_validate({**found, "temperature": temperature})


def versus(
    first: str, second: str, logits: Mapping[str, Tensor], labels: Tensor
) -> PairedDifference:
    """Compare two nets on the same images.

    Args:
        first, second: their roles.
        logits: by role, [N, C].
        labels: int64 [N].
    """
    found = paired_comparison(logits[first], logits[second], labels)
    right, other = (is_right(logits[role], labels) for role in (first, second))
    pair = PairedDifference(
        first=first,
        second=second,
        difference=found.gain,
        difference_ci95=found.gain_ci95,
        p_value=found.p_value,
        only_first=int((right & ~other).sum()),
        only_second=int((other & ~right).sum()),
    )
    return with_map(pair, logits, labels) if labels.ndim == 2 else pair


@torch.no_grad()
def under_corruptions(
    nets: Mapping[str, nn.Module],
    images: Images,
    names: Sequence[str],
    severities: Sequence[int],
    seed: int,
) -> CorruptionAccuracies:
    """Measure the accuracy of each net on corrupted images; see `kd.measure.corruptions`."""
    channels = images.pixels.shape[1]
    if channels not in (1, 3):
        raise UserError(
            f"corruptions: the images have {channels} channels; accepted are 1 (gray) and 3 (RGB)"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    right = {
        role: {name: dict.fromkeys(map(str, severities), 0) for name in names} for role in nets
    }
    size = images.pixels.batch
    steps = list(itertools.product(names, severities, range(0, len(images), size)))
    for net in nets.values():
        net.to(device).eval()
    for name, severity, i in waiting(steps, "corrupting images"):
        index = np.arange(i, min(i + size, len(images)))
        pixels = corrupt(images.pixels[i : i + size].numpy(), index, name, severity, seed)
        x = to_unit(torch.from_numpy(pixels).to(device))
        labels = images.labels[i : i + size]
        for role, net in nets.items():
            logits = net(normalize(x, *normalization_of(net, UNSCALED))).cpu()
            right[role][name][str(severity)] += int(is_right(logits, labels).sum())
    for net in nets.values():
        net.cpu()
    accuracy = {role: _shares(counts, len(images)) for role, counts in right.items()}
    mean = {
        role: float(np.mean([list(levels.values()) for levels in each.values()]))
        for role, each in accuracy.items()
    }
    return CorruptionAccuracies(
        severities=list(severities), seed=seed, accuracy=accuracy, mean=mean
    )


def _shares(counts: Mapping[str, Mapping[str, int]], images: int) -> dict[str, dict[str, float]]:
    """Divide the right answers by the number of images, by corruption and severity."""
    return {
        name: {level: count / images for level, count in levels.items()}
        for name, levels in counts.items()
    }


def _publish(found: EvaluationRecord, folder: Path) -> Path:
    file = _free_name(folder, found)
    there = file.exists()
    for path, text in ((file, found.text()), (file.with_suffix(".md"), as_markdown(found))):
        with whole(path) as temporary:
            temporary.write_text(text + "\n")
    console = Console()
    for table in tables(found):
        console.print(table)
    for line in sentences(found):
        console.print(line, highlight=False, markup=False)
    replaced = " (in place of an earlier one of the same images)" if there else ""
    console.print(
        f"Written: {file.with_suffix('.md')}{replaced}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return file


def _free_name(folder: Path, found: EvaluationRecord) -> Path:
    """Return a file name that is free, or that of an earlier evaluation on the same images."""
    words = ["evaluation"]
    if found.data.other:
        words.append(found.data.name)
        if found.data.name == "image_folder":
            words.append(Path(found.data.root).name)
    stem = "_".join(words)
    for i in itertools.count(1):
        file = folder / (f"{stem}.json" if i == 1 else f"{stem}_{i}.json")
        try:
            earlier = read_record(file, EvaluationRecord, SCHEMA, "evaluation")
        except FileNotFoundError:
            return file
        except UserError:  # somebody else's file
            continue
        if (earlier.run, earlier.data.fingerprint) == (found.run, found.data.fingerprint):
            return file
    raise AssertionError
