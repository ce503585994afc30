"""Completing a stage: from the store, or trained now."""

import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from kd.data.base import DataModule
from kd.errors import DropRequest
from kd.files.stage_record import (
    SCHEMA,
    BestAndLast,
    EpochMetrics,
    StageRecord,
    TrainingOutcome,
    TrainingTotal,
)
from kd.files.store import LEARNED, WEIGHTS, StageResult, Store, checksum
from kd.files.tensors import load_tensors, save_tensors
from kd.files.writing import writing
from kd.log import say
from kd.measure.metrics import summary
from kd.nets.build import build_net, normalization_of, set_normalization
from kd.nets.grow import Grown, align
from kd.nets.pretrained_weights import Normalization
from kd.stages.answers import load_answers, validation_logits
from kd.stages.result import (
    classes_of,
    copy_normalization,
    diagnose,
    knows,
    logits_name,
    logits_of,
)
from kd.stages.stage import Stage
from kd.stages.start import load_start, start_from_images
from kd.stages.teaching import teacher_of
from kd.teachers.diagnosis import other_order
from kd.teachers.ensemble import Ensemble
from kd.teachers.live_teacher import Teacher
from kd.teachers.stored_teacher import StoredTeacher
from kd.training.devices import world_size
from kd.training.fake_quantize import fake_quantize

# Receives an epoch's metrics, and may raise `DropRequest`
Watch = Callable[[Mapping[str, float]], None]


def complete(
    stage: Stage,
    store: Store,
    data: DataModule,
    *,
    force: bool = False,
    since: datetime | None = None,
    watch: Watch | None = None,
) -> tuple[StageResult, bool]:
    """Return the finished stage, from the store or trained now; and whether it was in the store.

    Args:
        force: train it again, unless it was finished after `since`.
        watch: receives each epoch's metrics in training.

    Raises:
        DropRequest: by `watch`; nothing of the stage is kept.
    """

    def counts(result: StageResult | None) -> bool:
        if result is None or not force:
            return result is not None
        return since is not None and datetime.fromisoformat(result.record.finished) >= since

    result = store.find(stage.key)
    if result and counts(result):
        return result, True
    data = data.for_stage(stage.sees)
    with store.claim(stage.key, stage.name) as folder:
        result = store.find(stage.key)  # another process may have finished it in the meantime
        if result and counts(result):
            return result, True
        torch.manual_seed(stage.spec.seed)
        net = _start(stage, data)
        try:
            outcome = (
                _train(stage, net, data, folder, watch)
                if stage.spec.epochs
                else _keep(net, data, folder, stage)
            )
        except DropRequest:
            shutil.rmtree(folder)
            raise
        normalization = normalization_of(net, data.statistics)
        sha256 = checksum(folder / WEIGHTS)
        return store.publish(_record(stage, outcome, normalization, sha256)), False


def _record(
    stage: Stage, outcome: TrainingOutcome, normalization: Normalization, sha256: str
) -> StageRecord:
    """Put down what came of a stage."""
    before = [each.record.total for each in (stage.start, *stage.members) if each]
    taught = {
        key.removeprefix("teacher/"): float(value)
        for key, value in outcome.history[-1].items()
        if key.startswith("teacher/")
    }
    if stage.start and not taught:
        taught = stage.start.record.taught
    return StageRecord(
        schema_number=SCHEMA,
        key=stage.key,
        name=stage.name,
        spec=stage.spec,
        finished=datetime.now(UTC).isoformat(),
        history=outcome.history,
        val=outcome.val,
        epochs=outcome.epochs,
        steps=outcome.steps,
        seconds=outcome.seconds,
        training_params=outcome.training_params,
        devices=world_size({**stage.runtime, **stage.spec.trainer}) if stage.spec.epochs else 1,
        reference=stage.reference.key if stage.reference and stage.spec.epochs else None,
        total=TrainingTotal(
            epochs=outcome.epochs + sum(each.epochs for each in before),
            seconds=outcome.seconds + sum(each.seconds for each in before),
        ),
        taught=taught,
        loaded=_is_loaded(stage),
        normalization=(list(normalization[0]), list(normalization[1])),
        sha256=sha256,
    )


def _is_loaded(stage: Stage) -> bool:
    """Whether the net was trained elsewhere, on unknown images."""
    members = any(each.record.loaded for each in stage.members)
    return bool(stage.weights and not stage.spec.epochs) or members


def _start(stage: Stage, data: DataModule) -> nn.Module:
    """Build the initial net of a stage: fresh, pretrained, from a file, or from another stage."""
    load = not (stage.weights or stage.start or stage.members)
    trained = stage.spec.epochs > 0
    net = build_net(stage.spec.net, data.shape, f"{stage.name}.net", load=load, trained=trained)
    if stage.weights:
        where = f"{stage.start_prefix}path"
        load_start(net, stage.weights, where, stage.spec, data.shape)
        load_answers(net, stage.weights, where, stage.spec, data)
    if said := stage.spec.normalization:
        where = f"{stage.start_prefix}normalization"
        set_normalization(net, (tuple(said.mean), tuple(said.std)), data.shape.channels, where)
    if stage.start:
        take = net.take_over if isinstance(net, Grown) else net.load_state_dict
        take(stage.start.weights())
        copy_normalization(net, stage.start)
    elif load:
        start_from_images(net, data)
    if not stage.start and stage.teacher and callable(inherit := getattr(net, "inherit", None)):
        inherit(stage.teacher.weights())
    if stage.members:
        assert isinstance(net, Ensemble)
        net.join(
            [each.weights() for each in stage.members],
            [each.record.normalization for each in stage.members],
        )
    return net


def _train(
    stage: Stage, net: nn.Module, data: DataModule, folder: Path, watch: Watch | None
) -> TrainingOutcome:
    # Imports Lightning, which a run with nothing to train skips
    from kd.training.fit import TrainingJob, fit

    reference = None
    val = data.split.val
    if stage.reference and not val.multilabel and knows(stage.reference, data, val):
        reference = logits_of(stage.reference, data, val).argmax(1)
    teacher: Teacher | None = None
    strong_teacher: Teacher | None = None
    diagnosis = None
    learned: dict[str, Tensor] = {}
    if stage.stored is not None:
        teacher = StoredTeacher(stage.stored)
    elif stage.teacher:
        teacher = teacher_of(stage, stage.teacher, data)
        if stage.loss.strong:
            strong_teacher = teacher_of(stage, stage.teacher, data, stage.loss.strong)
        # A teacher of fewer classes gives nothing for the other images
        all_classes = classes_of(stage.teacher) == data.shape.num_classes
        if all_classes and not val.multilabel and knows(stage.teacher, data, val):
            diagnosis = diagnose(stage.teacher, data)
    if stage.start and (file := stage.start.folder / LEARNED).exists():
        learned = load_tensors(file)
    if stage.spec.fake_quantize:
        say(f"{stage.name}: {fake_quantize(net)} layers round to 8 bits")
    job = TrainingJob(
        stage.name,
        stage.spec,
        stage.loss,
        data,
        stage.runtime,
        teacher=teacher,
        strong_teacher=strong_teacher,
        diagnosis=diagnosis,
        reference=reference,
        learned=learned,
        watch=watch,
        outlook=stage.outlook,
    )
    result = fit(net, job, folder)
    if stage.spec.align:
        factor = _align_head(net, folder / WEIGHTS)
        say(
            f"{stage.name}: the new classes' weights times {factor:.2f}, which gives them the "
            "norm of the old ones'"
        )
    return result


def _align_head(net: nn.Module, file: Path) -> float:
    """Align the last layer of a net and its weights file; returns the factor."""
    assert isinstance(net, Grown)
    net.load_state_dict(load_tensors(file))
    factor = align(net.head)
    save_tensors(net.state_dict(), file)
    return factor


def _keep(net: nn.Module, data: DataModule, folder: Path, stage: Stage) -> TrainingOutcome:
    """Finish a stage of 0 epochs: store the net as it is, with its validation metrics."""
    from torch.utils.tensorboard import SummaryWriter

    save_tensors(net.state_dict(), folder / WEIGHTS)
    val = data.split.val
    logits = validation_logits(net, data)
    if logits is None:
        only: EpochMetrics = {"epoch": 0, "seconds": 0.0}
        return TrainingOutcome([only], BestAndLast(best=only, last=only), 0, 0, 0.0, 0)
    # Same as in `logits_of`
    save_tensors({"logits": logits}, folder / f"{logits_name(val)}.safetensors")
    found = summary(logits, val.labels)
    orders = stage.weights and not val.multilabel
    if orders and (order := other_order(logits, val.labels, data.classes)):
        say(f"{stage.name}: {order}")
    row: EpochMetrics = {
        "epoch": 0,
        "val/acc": found.accuracy,
        "val/loss": found.nll,
        "seconds": 0.0,
    }
    if found.map is not None:
        row["val/map"] = found.map
    curves = folder / "tensorboard"
    with writing(curves, "the curves"), SummaryWriter(str(curves)) as events:
        for name in ("val/acc", "val/loss"):
            events.add_scalar(name, row[name])
    return TrainingOutcome([row], BestAndLast(best=row, last=row), 0, 0, 0.0, 0)
