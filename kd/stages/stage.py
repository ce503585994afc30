"""Stages: what each result depends on, its key, and doing each once."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from kd.config.fields import Node
from kd.config.precision import resolve_precision
from kd.config.schema import Training
from kd.config.trainer import epochs_of
from kd.data.base import DataModule
from kd.data.transfer import Sees
from kd.errors import DropRequest
from kd.files.stage_record import (
    SCHEMA,
    BestAndLast,
    EpochMetrics,
    StageRecord,
    StageSpec,
    TrainingOutcome,
    TrainingTotal,
)
from kd.files.store import WEIGHTS, StageResult, Store, checksum, key_of
from kd.files.tensors import load_tensors, save_tensors
from kd.files.writing import writing
from kd.log import say
from kd.measure.metrics import summary
from kd.nets.build import build_net, normalization_of, set_normalization
from kd.nets.grow import Grown, align
from kd.nets.hooks import kinds_of
from kd.nets.pretrained_weights import Normalization
from kd.stages.answers import load_answers, validation_logits
from kd.stages.chain import LABELS_ONLY, StagePlan
from kd.stages.code_hash import RECIPE, code_of, targets
from kd.stages.result import (
    classes_of,
    copy_normalization,
    diagnose,
    knows,
    logits_name,
    logits_of,
)
from kd.stages.start import (
    file_of,
    load_start,
    net_spec,
    set_start,
    start_from_images,
)
from kd.stages.teaching import checked_top_k, teacher_of
from kd.stages.try_out import depends_on_batch, taps_of
from kd.teachers.diagnosis import other_order
from kd.teachers.ensemble import Ensemble
from kd.teachers.live_teacher import Teacher
from kd.teachers.stored_teacher import StoredTeacher
from kd.teachers.view_files import Room
from kd.training.devices import world_size
from kd.training.fake_quantize import fake_quantize
from kd.training.loss_spec import LossSpec
from kd.training.remaining import Outlook

# Trainer options that do not change a stage's result.
RUNTIME_ONLY = {
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "sync_batchnorm",
    "log_every_n_steps",
    "deterministic",
    "enable_progress_bar",
    "benchmark",
    "compile",
    "inference_mode",
    "detect_anomaly",
    "profiler",
}
# Trainer options that belong to the data, see `kd.data.trial`, or to the recipe.
ELSEWHERE = {"limit_val_batches", "limit_test_batches", "max_epochs"}

# Parameters of a stage's loss, beside its weights, for a stage that starts from it.
LEARNED = "learned.safetensors"

# Trainer options with which an epoch may skip images, so that whole views are not worth computing.
PARTIAL_EPOCHS = {"limit_train_batches", "max_steps", "max_time"}

# Receives an epoch's metrics, and may raise `DropRequest`
Watch = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Stage:
    """A training to be done.

    Attributes:
        name: as in `stages=`.
        spec: everything that the result depends on, and nothing else; the training is built from it
            alone.
        runtime: Trainer options that do not change the result.
        loss: objective; the spec holds its node.
        teacher: finished stage that is the teacher, if the loss needs one.
        reference: finished stage for `val/agreement`; no part of the result.
        weights: file with the initial weights.
        start_prefix: prefix of the config keys for it, for messages.
        start: finished stage with the initial weights.
        members: finished stages that form the ensemble.
        room: storage of the teacher's outputs; None stores nothing.
        stored: logits [training images, C] to replay instead of a teacher.
        sees: which training images and labels it sees.
        outlook: what the run does after it, for messages.
    """

    name: str
    spec: StageSpec
    runtime: Mapping[str, object] = field(default_factory=dict)
    loss: LossSpec = LABELS_ONLY
    teacher: StageResult | None = None
    reference: StageResult | None = None
    weights: Path | None = None
    start_prefix: str = ""
    start: StageResult | None = None
    members: tuple[StageResult, ...] = ()
    room: Room | None = None
    stored: Tensor | None = None
    sees: Sees = "all"
    outlook: Outlook | None = None

    @property
    def key(self) -> str:
        """Key of the result in the store."""
        return key_of(self.spec.plain())


def make_stage(
    plan: StagePlan, config: Training, data: DataModule, results: Mapping[str, StageResult]
) -> Stage:
    """Make the stage of a plan.

    Args:
        results: earlier stages of the run, by name.
    """
    reads = data.teacher_reads if plan.sees == "all" else None
    data = data.for_stage(plan.sees)
    file = file_of(plan)
    members = tuple(results[name] for name in plan.members)
    load = not (file or plan.start or members)
    net, pretrained = net_spec(plan.net, *targets(plan.loss.node), load=load)
    spec = StageSpec(recipe=RECIPE, shape=(*data.shape,), data=data.key(), net=net)
    if pretrained:
        spec.pretrained = pretrained
    if reads:
        spec.reads = reads
    set_start(spec, plan, file, data.classes)
    stage = Stage(plan.name, spec, weights=file, start_prefix=plan.start_prefix, sees=plan.sees)
    if plan.trains == "none":
        spec.epochs = 0
        spec.code = code_of(*targets(plan.net))
        if members:
            spec.members = [each.key for each in members]
        if load:
            spec.seed = plan.recipe.seed
        return replace(stage, members=members)
    _set_recipe(spec, plan, data, config)
    accelerator = str(config.trainer.get("accelerator", "auto"))
    own = f"{plan.recipe_at or 'trainer.'}precision"
    spec.trainer["precision"] = resolve_precision(plan.precision, accelerator, own)
    runtime = {k: v for k, v in config.trainer.items() if k in RUNTIME_ONLY}
    spec.code = code_of(*targets(plan.net), *targets(spec.objective))
    teacher = results[plan.teacher] if plan.teacher else None
    start = results[plan.start] if plan.start else None
    if start:
        spec.start = start.key
    if teacher:
        _set_teacher(spec, plan, teacher, config, data.shape.num_classes)
    if plan.fake_quantize:
        spec.fake_quantize = True
    if taps := taps_of(plan, data):
        spec.taps = taps
    other = results.get("teacher") if plan.role != "teacher" else None
    return replace(
        stage,
        runtime={**runtime, "logger": logger_nodes(config, plan.name)},
        loss=plan.loss,
        teacher=teacher,
        reference=teacher or other,
        start=start,
        room=_room(config),
    )


def _set_recipe(spec: StageSpec, plan: StagePlan, data: DataModule, config: Training) -> None:
    recipe = plan.recipe
    spec.seed = recipe.seed
    spec.batch_size = recipe.batch_size
    spec.optim = dict(recipe.optim)
    spec.lr_schedule = recipe.lr_schedule
    spec.gradient_clip = recipe.gradient_clip
    spec.label_smoothing = recipe.label_smoothing
    spec.ema = recipe.ema
    spec.swa = recipe.swa
    spec.early_stopping = recipe.early_stopping
    spec.keep = recipe.keep
    if not recipe.drop_last:
        spec.drop_last = False  # else left out: keys of other recipes stay as they were
    spec.objective = dict(plan.loss.node)
    spec.epochs = epochs_of(config.trainer, recipe.epochs)
    spec.trainer = {k: v for k, v in config.trainer.items() if k not in RUNTIME_ONLY | ELSEWHERE}
    devices = world_size(config.trainer)
    if devices > 1 and depends_on_batch(plan, data, config.trainer):
        spec.batch_size_per_device = spec.batch_size // devices
    if not data.selects(plan.sees):
        spec.keep = "last"


def logger_nodes(config: Training, stage: str) -> dict[str, Node]:
    """Return the config's loggers with the run's and the stage's name in them.

    `{folder}` stays: it is the stage's.
    """
    output = str(Path(config.output_dir).expanduser().resolve())
    words = {"{run}": config.name, "{stage}": stage, "{output}": output}

    def fill(node: object) -> object:
        if isinstance(node, Mapping):
            return {name: fill(value) for name, value in node.items()}
        for word, text in words.items() if isinstance(node, str) else ():
            node = str(node).replace(word, text)
        return node

    return {name: {k: fill(v) for k, v in node.items()} for name, node in config.logger.items()}


def _set_teacher(
    spec: StageSpec, plan: StagePlan, teacher: StageResult, config: Training, classes: int
) -> None:
    """Put down who teaches, and in which form its answers come."""
    asked = config.teacher
    accelerator = str(config.trainer.get("accelerator", "auto"))
    spec.teacher = teacher.key
    spec.outputs = asked.outputs
    spec.answered_in = resolve_precision(asked.precision, accelerator, "teacher.precision")
    if asked.top_k is not None:
        spec.top_k = checked_top_k(asked.top_k, classes)
    if asked.cache_features and kinds_of(plan.loss.signals, "t"):
        spec.features = "float16"


def _room(config: Training) -> Room | None:
    if config.teacher.cache == "off" or PARTIAL_EPOCHS & set(config.trainer):
        return None
    return Room(
        Path(config.output_dir).expanduser() / "cache" / "teacher", config.teacher.cache_limit
    )


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
    diagnosis = None
    learned: dict[str, Tensor] = {}
    if stage.stored is not None:
        teacher = StoredTeacher(stage.stored)
    elif stage.teacher:
        teacher = teacher_of(stage, stage.teacher, data)
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
