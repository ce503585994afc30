"""What may stand in the config, with its ranges; checked once, before anything is built."""

from collections.abc import Collection
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from omegaconf import DictConfig
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

from kd.config.checking import as_floats, check_as, validated
from kd.config.fields import FolderName, LearningRate, Node, Seed, Trains, number
from kd.config.knobs import KNOBS, refuse_unused, uses
from kd.config.precision import ACCEPTED, read_precision, resolved
from kd.config.schedules import POSITIVE, SHARE
from kd.config.trainer import TrainerOptions
from kd.errors import UserError
from kd.files.header import net_of

T = TypeVar("T", bound="Training")


class Strict(BaseModel):
    """No unknown keys, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Recipe(Strict):
    """How a stage trains.

    Attributes:
        epochs: passes over the training part; 0 keeps the net as it starts.
        batch_size: images per optimiser step and device.
        lr_schedule: how the learning rate moves, by the step; see `kd.training.learning_rate`.
        label_smoothing: share of a label that goes to all classes alike (Szegedy et al. 2016).
        gradient_clip: largest norm of the gradient, null for no limit.
        ema: decay per step of the averaged weights that are validated and kept instead of the last ones; less at the
            start, when it is (1 + steps) / (10 + steps); null for none.
        swa: after which share of the steps to average the weights of all steps alike instead (after Izmailov et al.
            2018, who average those of each epoch); null for none.
        early_stopping: epochs without a better validation accuracy after which to stop; null to go on to the end.
        keep: which weights the stage ends with: those of the epoch that was best on validation (of several that are
            equally good the last), or those of the last epoch.
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


class Normalization(Strict):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: Annotated[list[float], Field(min_length=1)]
    std: Annotated[list[PositiveFloat], Field(min_length=1)]


class Answers(Strict):
    """How a teacher's answers are kept.

    Attributes:
        outputs: the type that its logits are rounded to, kept or not.
        precision: the number format that it trains and answers in, `auto` for what the device does fastest; the
            student's is `trainer.precision`. See `kd.config.precision`.
        cache: whether they are kept, by image and view, for all later epochs and runs; that changes no result.
        cache_limit: how much room all kept outputs may take, in GB (10^9 bytes).
    """

    outputs: Literal["float16", "float32"]
    precision: Annotated[
        str,
        BeforeValidator(partial(read_precision, key="teacher.precision")),
        Field(description=f"one of {', '.join(ACCEPTED)}"),
    ]
    cache: Annotated[
        Literal["auto", "off"], BeforeValidator(lambda found: "off" if found is False else found)
    ]  # YAML
    cache_limit: PositiveFloat


Name = Annotated[  # of a class; YAML reads some as numbers
    str, BeforeValidator(lambda found: str(found) if type(found) is int else found)
]


class Start(Strict):
    """A net, and the weights of somebody else that it may start from.

    Attributes:
        path: a file with weights to start from, or a run's folder; null to start afresh.
        state: which weights of that file, where it has several: `ema`, `raw`, or a key or prefix in it; null takes
            averaged ones (EMA) before others.
        classes: the classes that the net in that file knows, in order: a list, or a file with one a line. Its outputs
            are put in the data's order by name, and those of other classes are left out. null: as the file says.
        normalization: what the weights in `path` were trained with, where the file does not say it itself; null for
            the net's own, or else the data's.
        taps: paths of the modules that a loss looks at, where it asks for features; null for the net's own choice. The
            teacher's are in the same order: each is paired with one of the student's.
    """

    at: ClassVar[str] = ""  # the config's group

    net: Node
    path: str | None = None
    state: str | None = None
    classes: Annotated[list[Name], Field(min_length=1)] | str | None = None
    normalization: Normalization | None = None
    taps: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _of_a_path(self) -> Self:
        for name in ("state", "classes"):
            if (found := getattr(self, name)) is not None and self.path is None:
                raise UserError(
                    f"{self.at}.{name}: found {found!r}, but there is no {self.at}.path that it is about"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _net(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("net") is not None:
            return given
        path = given.get("path")
        if not isinstance(path, str):
            raise UserError(
                f"{cls.at}.path: found {path!r}, needed is the file with the weights, where no net is named"
            )
        return {**given, "net": net_of(path, cls.at)}


class Teacher(Recipe, Answers, Start):
    """The teacher's net and recipe, and how its answers are kept.

    Attributes:
        finetune: what is trained from there: all of it, the last layer alone (head), or none; null trains all, but
            none where there is a `path`.
        members: several teachers that answer as one; each says what it does otherwise than this one. None for one.
        weights, average, average_temperature: how they do; see `kd.teachers.ensemble.Ensemble`.
    """

    at = "teacher"

    finetune: Trains | None
    members: Annotated[list[Node], Field(min_length=1)] | None = None
    weights: list[PositiveFloat] | None = None
    average: Literal["logits", "probabilities"] = "logits"
    average_temperature: Any = (
        None  # often `${temperature}`, which may be a schedule; it counts for probabilities
    )

    @property
    def trains(self) -> Trains:
        """What the teacher's stage trains."""
        return self.finetune or ("none" if self.path else "all")

    def member(self, number: int) -> "Teacher":
        """One of the members; what it does not say itself is as here.

        Raises:
            UserError: for a key that a teacher does not have, or a value out of range.
        """
        assert self.members is not None
        own = self.members[number]
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
        return validated(Teacher, {**whole, "members": None}, f"teacher.members[{number}].")


class Student(Start):
    """The student's net, which is the baseline's too: both start from the same. Its recipe is at top level.

    Attributes:
        finetune: what is trained: all of it, or the last layer alone (head); null for all.
    """

    at = "student"

    finetune: Literal["all", "head"] | None = None


class StageConfig(Strict):
    """What a stage trains, on what; and what it does otherwise than its net's recipe says.

    Attributes:
        net: `teacher` or `student`, that net with its recipe; or a net of its own, with the student's recipe.
        loss: `labels`, the cross-entropy alone; `method`, what `loss=` names; or an objective of its own.
        teacher: the earlier stage whose net teaches, where the loss asks for one; null for the one called `teacher`.
        start: the earlier stage whose weights it starts from; null for fresh ones.
        lr_factor: multiplies the recipe's optim.lr.
        seed_offset: added to the recipe's seed.
        trains: `all`, or `loss` to leave the net as it is and train what the loss learns itself.
        taps: what a loss looks at in a net of the stage's own, as `student.taps`.
        fake_quantize: round weights and activations to 8 bits on the way; see `kd.training.fake_quantize`.

    The others are those of `Recipe`; null leaves the recipe as it is.
    """

    net: Literal["teacher", "student"] | Node
    loss: Literal["labels", "method"] | Node
    teacher: str | None = None
    start: str | None = None
    lr_factor: PositiveFloat = 1.0
    seed_offset: NonNegativeInt = 0
    trains: Literal["all", "loss"] = "all"
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


class Training(Recipe):
    """What the commands that train share; the recipe at top level is the student's.

    Attributes:
        alpha: weight of the teacher's side; a share or a schedule of shares.
        temperature: of the softened probabilities; a number above 0 or a schedule of such.
    """

    alpha: Annotated[Any, number("alpha", SHARE)]
    temperature: Annotated[Any, number("temperature", POSITIVE)]
    force: bool
    debug: bool
    pictures: bool
    output_dir: Annotated[str, Field(min_length=1)]
    name: FolderName
    data: Node
    teacher: Answers
    student: Student
    loss: Node
    trainer: TrainerOptions
    _used: tuple[str, ...] = PrivateAttr(())

    @property
    def used(self) -> tuple[str, ...]:
        """Of `alpha` and `temperature` those that the loss depends on."""
        return self._used

    def settled(self) -> Self:
        """The config with the precisions that `auto` means on this machine, and without a trial's pictures.

        Raises:
            UserError: the device cannot train in one of them.
        """
        accelerator = str(self.trainer.get("accelerator", "auto"))
        student = resolved(self.trainer["precision"], accelerator, "trainer.precision")
        teacher = resolved(self.teacher.precision, accelerator, "teacher.precision")
        return self.model_copy(
            update={
                # Drawing takes longer than a trial's training, and shows nothing.
                "pictures": self.pictures and "limit_test_batches" not in self.trainer,
                "trainer": {**self.trainer, "precision": student},
                "teacher": self.teacher.model_copy(update={"precision": teacher}),
            }
        )


class Config(Training):
    """The whole config of `kd.train`; the recipe at top level is the student's and the baseline's.

    Attributes:
        numbers_from: where the loss's numbers come from, unless typed; null for the loss file. See conf/authors.
    """

    numbers_from: str | None
    stages: Annotated[list[str], Field(min_length=1)]
    stage: dict[Annotated[str, Field(pattern=r"^\w+$")], StageConfig]
    teacher: Teacher

    @model_validator(mode="after")
    def _chain(self) -> Self:
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages: found {self.stages}, each may be named once")
        return self

    @model_validator(mode="after")
    def _for_this_command(self) -> Self:
        if (command := self.loss.get("command")) is not None:
            raise UserError(
                f"loss: this method is for classes that come in tasks: python -m {command} incremental.method=NAME; "
                "accepted here are the methods of docs/methods.md, such as loss=kd"
            )
        return self


class Command(Strict):
    """What the commands about finished runs share; see conf/base/command.yaml."""

    debug: bool
    trust: list[str]


def check(cfg: DictConfig, typed: Collection[str] = ()) -> Config:
    """The composed config of `kd.train` as a checked object; see `check_training`."""
    return check_training(Config, cfg, typed)


def check_training(model: type[T], cfg: DictConfig, typed: Collection[str]) -> T:
    """The composed config of a command that trains as a checked object.

    Args:
        typed: the keys that stood on the command line.

    Raises:
        UserError: with a line for each key that is wrong: its name, what was found, what is accepted.
    """
    as_floats(cfg, KNOBS)  # 4 and 4.0 are one setting, so one name and one key in the store
    config = check_as(model, cfg)
    refuse_unused(cfg, typed)
    config._used = tuple(knob for knob in KNOBS if uses(cfg, knob))
    return config
