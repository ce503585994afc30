"""Stages: what each result depends on, and its key."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from kd.config.fields import Node
from kd.config.precision import resolve_precision
from kd.config.schema import Training
from kd.config.trainer import epochs_of
from kd.data.base import DataModule
from kd.data.transfer import Sees
from kd.files.stage_record import StageSpec
from kd.files.store import StageResult, key_of
from kd.nets.hooks import kinds_of
from kd.stages.chain import LABELS_ONLY, StagePlan
from kd.stages.code_hash import RECIPE, code_of, targets
from kd.stages.start import file_of, net_spec, set_start
from kd.stages.try_out import depends_on_batch, taps_of
from kd.teachers.top_answers import checked_top_k
from kd.teachers.view_files import Room
from kd.training.devices import world_size
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

# Trainer options with which an epoch may skip images, so that whole views are not worth computing.
PARTIAL_EPOCHS = {"limit_train_batches", "max_steps", "max_time"}


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
