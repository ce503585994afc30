"""Schema of the config with ranges, checked once before anything is built."""

from collections.abc import Collection
from functools import partial
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from omegaconf import DictConfig, OmegaConf
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    model_validator,
)

from kd.config.checking import as_floats, check_as, validate
from kd.config.fields import (
    Budget,
    FolderName,
    Interpolation,
    LearningRate,
    Match,
    Node,
    Resize,
    Seed,
    Side,
    Trains,
    number,
)
from kd.config.knobs import KNOBS, refuse_unused, uses
from kd.config.paths import check_paths
from kd.config.precision import ACCEPTED, read_precision, resolve_precision
from kd.config.schedules import POSITIVE, SHARE
from kd.config.teacher_data import teacher_source
from kd.config.trainer import TRIAL_BATCH, TrainerOptions, is_trial
from kd.errors import UserError
from kd.files.header import net_of

T = TypeVar("T", bound="Training")
READING = ("image_size", "resize", "crop_ratio", "interpolation")  # how a teacher gets its images


class Strict(BaseModel):
    """Base model: no unknown keys, no silent type conversion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# Keys of a recipe that ask for a minimum, each with the keys that leave no room for it
LEAST = {"min_steps": ("epochs",), "min_batches": ("batch_size", "batch_size_per_device")}


class Recipe(Strict):
    """Training recipe of a stage.

    Attributes:
        epochs: passes over the training part; 0 keeps the initial net.
        batch_size: images per optimiser step, over all devices.
        batch_size_per_device: images per optimiser step on each device; null uses `batch_size`.
        lr_schedule: learning-rate schedule, per step; see `kd.training.learning_rate`.
        label_smoothing: share of a label that is spread evenly over all classes (Szegedy et al.
            2016).
        gradient_clip: largest norm of the gradient, null for no limit.
        ema: decay per step of averaged weights, which are validated and kept instead of the last
            ones; null for none. At the start it is lower: (1 + steps) / (10 + steps).
        swa: share of the steps after which the weights of all steps are averaged with equal weight;
            null for none. After Izmailov et al. 2018, who average once per epoch.
        min_steps: optimiser steps to take at least; more epochs are made where it takes them.
        min_batches: batches of an epoch at least; they are made smaller, down to 8 images.
        drop_last: whether images that fill no batch are left out of an epoch; otherwise all are
            shown, in batches of nearly equal size.
        early_stopping: epochs without a better validation accuracy before stopping; null for none.
        keep: weights to keep: those of the best epoch on validation (the last of equal ones), or of
            the last epoch.
    """

    epochs: NonNegativeInt
    seed: Seed
    batch_size: PositiveInt
    optim: Node
    lr_schedule: LearningRate
    gradient_clip: PositiveFloat | None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    swa: Annotated[float, Field(ge=0, lt=1)] | None
    early_stopping: PositiveInt | None
    keep: Literal["best", "last"]
    batch_size_per_device: PositiveInt | None = None
    min_steps: NonNegativeInt = 0
    min_batches: NonNegativeInt = 0
    drop_last: bool = True


class NormalizationConfig(Strict):
    """Mean and standard deviation per channel, for pixels in [0, 1]."""

    mean: Annotated[list[float], Field(min_length=1)]
    std: Annotated[list[PositiveFloat], Field(min_length=1)]


class AnswerConfig(Strict):
    """Storage of teacher outputs.

    Attributes:
        outputs: type that logits are rounded to, cached or not.
        precision: number format of the teacher's training and outputs, `auto` for the device's
            fastest; the student's is `trainer.precision`. See `kd.config.precision`.
        cache: whether to store outputs by image and view for later epochs and runs. It changes no
            result.
        cache_limit: size of all stored outputs, in GB (10^9 bytes).
        top_k: how many logits of each answer are kept; the other classes share what is left of 1
            evenly. null keeps all. See `kd.teachers.top_answers`.
        cache_features: whether features are stored too, for losses that look inside the teacher.
            They are rounded to float16, which is part of the result.
    """

    outputs: Literal["float16", "float32"]
    precision: Annotated[
        str,
        BeforeValidator(partial(read_precision, key="teacher.precision")),
        Field(description=f"one of {', '.join(ACCEPTED)}"),
    ]
    # YAML 1.1 reads `off` as False.
    cache: Annotated[
        Literal["auto", "off"], BeforeValidator(lambda found: "off" if found is False else found)
    ]
    cache_limit: PositiveFloat
    top_k: PositiveInt | None = None
    cache_features: bool = False


Name = Annotated[  # of a class; YAML reads some as numbers
    str, BeforeValidator(lambda found: str(found) if type(found) is int else found)
]


class Start(Strict):
    """Net, and weights from elsewhere that it may start from.

    Attributes:
        path: file with initial weights, or a run folder; null for fresh weights.
        state: choice between several sets of weights in that file: `ema`, `raw`, or a key or
            prefix; null prefers averaged ones (EMA).
        match: pair the file's tensors with the net's by `name`, or by `order` where names differ.
        classes: classes of the net in that file, in order: a list, or a file with one per line.
            Outputs are matched to the data's classes by name, and others are dropped. null: as the
            file says.
        normalization: normalisation used in training the weights in `path`, if the file does not
            say; null for the net's own, or else the data's.
        taps: paths of the hooked layers for feature losses; null for the net's default. Layers of
            student and teacher are paired in order.
    """

    at: ClassVar[str] = ""  # config group

    net: Node
    path: str | None = None
    state: str | None = None
    match: Match = "name"
    classes: Annotated[list[Name], Field(min_length=1)] | str | None = None
    normalization: NormalizationConfig | None = None
    taps: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _of_a_path(self) -> Self:
        for name in ("state", "classes", "match"):
            found = getattr(self, name)
            if found not in (None, "name") and self.path is None:
                raise UserError(f"{self.at}.{name}: found {found!r}, but {self.at}.path is not set")
        return self

    @model_validator(mode="before")
    @classmethod
    def _net(cls, given: object) -> object:
        if not isinstance(given, dict) or given.get("net") is not None:
            return given
        path = given.get("path")
        if not isinstance(path, str):
            raise UserError(
                f"{cls.at}.path: found {path!r}, needed is the file with the weights, where "
                "no net is named"
            )
        return {**given, "net": net_of(path, cls.at)}


class TeacherConfig(Recipe, AnswerConfig, Start):
    """Net and recipe of the teacher, and storage of its outputs.

    Attributes:
        data: training data other than the run's: a folder, changed keys of the run's data, or
            another source with the same classes.
        image_size: side of its images in pixels, or height and width; null for the data's. It gets
            the same views, made from the originals at this size.
        resize, crop_ratio, interpolation: how its images come to that size; null for the data's.
            See `kd.data.decode.Reading`.
        finetune: what to train from the initial weights: all of the net, the last layer only
            (head), all but batch norms (frozen_norms), or nothing (none). null trains all without a
            `path`, and nothing with one.
        members: ensemble members; each lists only what differs from this teacher. None: no
            ensemble.
        weights, average, average_temperature: of the ensemble; see `kd.teachers.ensemble.Ensemble`.
    """

    at = "teacher"

    data: str | Node | None = None
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    resize: Resize | None = None
    crop_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    interpolation: Interpolation | None = None
    finetune: Trains | None
    members: Annotated[list[Node], Field(min_length=1)] | None = None
    weights: list[PositiveFloat] | None = None
    average: Literal["logits", "probabilities"] = "logits"
    average_temperature: object = (
        None  # often `${temperature}`, which may be a schedule; used for probabilities
    )

    @model_validator(mode="after")
    def _trains_on_data(self) -> Self:
        if self.data is not None and self.members is None and self.trains == "none":
            raise UserError(
                f"teacher.data: found {self.data!r}, but the weights in teacher.path are taken as "
                "they are, so nothing is trained on it; accepted are teacher.data=null or "
                "teacher.finetune=all"
            )
        return self

    @property
    def trains(self) -> Trains:
        """What the teacher's stage trains."""
        return self.finetune or ("none" if self.path else "all")

    def member(self, number: int) -> "TeacherConfig":
        """Return one of the members, completed from this teacher.

        Raises:
            UserError: unknown key, or value out of range.
        """
        assert self.members is not None
        own = self.members[number]
        for name in ("data", *READING):
            if name in own:
                raise UserError(
                    f"teacher.members[{number}].{name}: found {own[name]!r}; all members have the "
                    f"images of teacher.{name}"
                )
        net = own.get("net", {})
        if not isinstance(net, dict):
            raise UserError(
                f"teacher.members[{number}].net: found {net!r}; input should be a valid dictionary"
            )
        whole = {
            **self.model_dump(),
            **own,
            "net": net if "_target_" in net else {**self.net, **net},
        }
        return validate(TeacherConfig, {**whole, "members": None}, f"teacher.members[{number}].")


class StudentConfig(Start):
    """Net of the student and the baseline, which start from equal weights; its recipe is at top
    level.

    Attributes:
        finetune: what to train: all of the net, the last layer only (head), or all but batch norms
            (frozen_norms); null for all.
    """

    at = "student"

    finetune: Literal["all", "head", "frozen_norms"] | None = None


class StageConfig(Strict):
    """One stage: what it trains, on what, and how it differs from its net's recipe.

    Attributes:
        net: `teacher` or `student`, with that recipe; or a net of its own, with the student's
            recipe.
        loss: `labels`, the cross-entropy only; `method`, what `loss=` names; or an objective of its
            own.
        teacher: earlier stage whose net teaches, if the loss needs one; null for the one called
            `teacher`.
        start: earlier stage whose weights it starts from; null for fresh ones.
        lr_factor: multiplies the recipe's optim.lr.
        seed_offset: added to the recipe's seed.
        trains: `all`, `head` for the last layer alone, or `loss` to freeze the net and train the
            loss's own parameters.
        taps: hooked layers of a net of its own, as `student.taps`.
        fake_quantize: simulate 8-bit weights and activations; see `kd.training.fake_quantize`.

    The others are those of `Recipe`; null keeps the recipe's value.
    """

    net: Literal["teacher", "student"] | Node
    loss: Literal["labels", "method"] | Node
    teacher: str | None = None
    start: str | None = None
    lr_factor: PositiveFloat = 1.0
    seed_offset: NonNegativeInt = 0
    trains: Literal["all", "head", "loss"] = "all"
    taps: Annotated[list[str], Field(min_length=1)] | None = None
    fake_quantize: bool = False
    epochs: NonNegativeInt | None = None
    seed: Seed | None = None
    batch_size: PositiveInt | None = None
    optim: Node | None = None
    lr_schedule: LearningRate | None = None
    gradient_clip: PositiveFloat | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    swa: Annotated[float, Field(ge=0, lt=1)] | None = None
    early_stopping: PositiveInt | None = None
    keep: Literal["best", "last"] | None = None
    batch_size_per_device: PositiveInt | None = None
    min_steps: NonNegativeInt | None = None
    min_batches: NonNegativeInt | None = None
    drop_last: bool | None = None


class Training(Recipe):
    """Config shared by the training commands; the recipe at top level is the student's.

    Attributes:
        alpha: weight of the teacher's side, in [0, 1]; a number or a schedule.
        temperature: of the softened probabilities, > 0; a number or a schedule.
        logger: loggers of each stage, by name; see conf/logger.
    """

    alpha: Annotated[object, number("alpha", SHARE)]
    temperature: Annotated[object, number("temperature", POSITIVE)]
    force: bool
    debug: bool
    pictures: bool
    output_dir: Annotated[str, Field(min_length=1)]
    name: FolderName
    data: Node
    teacher: AnswerConfig
    student: StudentConfig
    loss: Node
    trainer: TrainerOptions
    logger: dict[str, Node] = Field(default_factory=dict)
    _used: tuple[str, ...] = PrivateAttr(())

    @property
    def loss_knobs(self) -> tuple[str, ...]:
        """Those of `alpha` and `temperature` that the loss uses."""
        return self._used

    @property
    def precision(self) -> str:
        """Number format of the student's training."""
        return str(self.trainer["precision"])

    def resolve(self) -> Self:
        """Return the config with `auto` precisions resolved, and without pictures in a trial run.

        Raises:
            UserError: the device does not support a precision.
        """
        accelerator = str(self.trainer.get("accelerator", "auto"))
        student = resolve_precision(self.precision, accelerator, "trainer.precision")
        teacher = resolve_precision(self.teacher.precision, accelerator, "teacher.precision")
        return self.model_copy(
            update={
                # Drawing takes longer than a trial's training, and shows nothing.
                "pictures": self.pictures and "limit_test_batches" not in self.trainer,
                "trainer": {**self.trainer, "precision": student},
                "teacher": self.teacher.model_copy(update={"precision": teacher}),
            }
        )


class Config(Training):
    """Config of `kd.train`; the recipe at top level is that of student and baseline.

    Attributes:
        budget: how long the stages may take together; fewer epochs where they would take longer.
        numbers_from: source of the loss's numbers, unless set on the command line; null for the
            loss file. See conf/authors.
    """

    numbers_from: str | None
    budget: Budget | None
    stages: Annotated[list[str], Field(min_length=1)]
    stage: dict[Annotated[str, Field(pattern=r"^\w+$")], StageConfig]
    teacher: TeacherConfig

    @model_validator(mode="before")
    @classmethod
    def _teacher_data(cls, given: object) -> object:
        """Pass the teacher's images to the data module, which gives each stage its own."""
        if not isinstance(given, dict):
            return given
        data, teacher = (given.get(name) for name in ("data", "teacher"))
        if not isinstance(teacher, dict) or not isinstance(data, dict):
            return given
        more: dict[str, object] = {}
        if isinstance(asked := teacher.get("data"), str | dict):
            more["teacher_data"] = teacher_source(data, asked)
        if reading := {name: teacher[name] for name in READING if teacher.get(name) is not None}:
            more["teacher_reading"] = reading
        return {**given, "data": {**data, **more}} if more else given

    @model_validator(mode="after")
    def _chain(self) -> Self:
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages: found {self.stages}, each may be named once")
        return self


class Command(Strict):
    """Config shared by the commands on finished runs; see conf/base/command.yaml."""

    debug: bool
    trust: list[str]


class RunRequest(Command):
    """Config shared by the commands of `kd.run_commands`.

    Attributes:
        run: folder of the finished run.
        out: folder for the results; None for the run's own.
    """

    run: str
    out: str | None
    _typed: frozenset[str] = PrivateAttr(frozenset())  # keys on the command line


def check(cfg: DictConfig, typed: Collection[str] = ()) -> Config:
    """Validate the composed config of `kd.train`; see `check_training`."""
    return check_training(Config, cfg, typed)


def small_batches(cfg: DictConfig, typed: Collection[str]) -> None:
    """Reduce the batch sizes of a trial run in `cfg`: its length must not depend on them.

    Args:
        typed: keys on the command line, which are kept.
    """
    options = cfg.get("trainer")
    if not isinstance(options, DictConfig) or not is_trial(options):
        return
    for key in {"batch_size", "teacher.batch_size"} - set(typed):
        if isinstance(found := OmegaConf.select(cfg, key), int):
            OmegaConf.update(cfg, key, min(found, TRIAL_BATCH))


def typed_lengths(cfg: DictConfig, typed: Collection[str]) -> None:
    """Switch off `min_steps` where epochs are typed, and `min_batches` where a batch size is.

    Args:
        typed: keys on the command line, which are kept.
    """
    for at in ("", "teacher."):
        for least, keys in LEAST.items():
            asked = f"{at}{least}" in typed or not any(f"{at}{key}" in typed for key in keys)
            if not asked and OmegaConf.select(cfg, f"{at}{least}"):
                OmegaConf.update(cfg, f"{at}{least}", 0)


def check_training(model: type[T], cfg: DictConfig, typed: Collection[str]) -> T:
    """Validate the composed config of a training command.

    Args:
        typed: keys on the command line.

    Raises:
        UserError: one line per wrong key: its name, what was found, what is accepted.
    """
    small_batches(cfg, typed)
    typed_lengths(cfg, typed)
    as_floats(cfg, KNOBS)  # 4 and 4.0 must give one name and one key in the store
    config = check_as(model, cfg)
    refuse_unused(cfg, typed)
    starts = {at: getattr(getattr(config, at), "path", None) for at in ("teacher", "student")}
    check_paths(config.data, starts, typed)
    config._used = tuple(knob for knob in KNOBS if uses(cfg, knob))
    return config
