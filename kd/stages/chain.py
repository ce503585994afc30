"""The chain of stage plans, read from the config before any data: what, on what, after which."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from kd.config.fields import Match, Node, Trains
from kd.config.rates import check_length
from kd.config.schema import (
    LEAST,
    Config,
    NormalizationConfig,
    Recipe,
    StageConfig,
    Start,
    TeacherConfig,
)
from kd.data.transfer import Sees
from kd.errors import UserError, nearest
from kd.stages.answers import is_answers
from kd.training.devices import world_size
from kd.training.loss_spec import LossSpec, read_loss

Role = Literal["teacher", "baseline", "student"]
LABELS_ONLY = read_loss({"ce_weight": 1.0, "terms": {}})


@dataclass(frozen=True)
class StagePlan:
    """Plan of one stage, from the config.

    Attributes:
        name: as in `stages=`.
        role: of its net in the run's comparison; None for an intermediate net, such as an
            assistant.
        net: config node of the net.
        where: config key of `net`, for messages; `recipe_at` is the prefix of the recipe's keys.
        loss: objective of the training.
        precision: number format of the training, or `auto`.
        teacher: earlier stage whose net is the teacher; None if the loss needs none.
        start: earlier stage with the initial weights; None for fresh ones.
        path: file with the initial weights.
        state: choice between several sets of weights in that file.
        match: whether its tensors are paired with the net's by name or in order.
        classes: classes of that file's net in order, or a file that names them; None for what the
            file says.
        trains: all of the net, its last layer only (head), all but batch norms (frozen_norms), none
            of it, or only the loss's own parameters (loss).
        fake_quantize: whether its layers round to 8 bits in training.
        normalization: normalisation used in training the weights in `path`, if the config says it.
        members: earlier stages that form the ensemble.
        taps: paths of the hooked layers; None for the net's default.
        teacher_net, teacher_taps, teacher_sees: the same of the teacher's stage.
        sees: which training images and labels it sees.
    """

    name: str
    role: Role | None
    net: Node
    where: str
    recipe: Recipe
    recipe_at: str
    loss: LossSpec
    precision: str = "auto"
    teacher: str | None = None
    start: str | None = None
    path: str | None = None
    state: str | None = None
    match: Match = "name"
    classes: list[str] | str | None = None
    trains: Trains | Literal["loss"] = "all"
    fake_quantize: bool = False
    normalization: NormalizationConfig | None = None
    members: tuple[str, ...] = ()
    taps: list[str] | None = None
    teacher_net: Node | None = None
    teacher_taps: list[str] | None = None
    teacher_sees: Sees = "all"
    sees: Sees = "all"

    @property
    def start_prefix(self) -> str:
        """Prefix of the config keys for the net's start."""
        return self.where.removesuffix("net")


def chain_of(config: Config) -> list[StagePlan]:
    """Build the plans of `stages=`, in order.

    Raises:
        UserError: an undefined stage, a stage before one it builds on, or an error in a loss.
    """
    plans: dict[str, StagePlan] = {}
    for name in config.stages:
        if name not in config.stage:
            accepted = ", ".join(config.stage)
            raise UserError(
                f"stages: there is no {name!r}; accepted are "
                f"{accepted}{nearest(name, config.stage)}"
            )
        if name == "teacher" and config.teacher.members:
            plans |= _members(config)
        plans[name] = plan = _plan(name, config.stage[name], config)
        for needed in (plan.teacher, plan.start):
            if needed and (needed == name or needed not in plans):
                raise UserError(
                    f"stages: found [{', '.join(config.stages)}]; {name} builds on {needed}, "
                    "which must come before it (a finished stage is not trained again)"
                )
        if plan.teacher:
            taught_by = plans[plan.teacher]
            plans[name] = plan = replace(
                plan,
                teacher_net=taught_by.net,
                teacher_taps=taught_by.taps,
                teacher_sees=taught_by.sees,
            )
        if plan.start and plans[plan.start].net != plan.net:
            raise UserError(
                f"stage.{name}.start: {plan.start} is another net than {name}, so its weights "
                "do not fit"
            )
    return list(plans.values())


def _plan(name: str, stage: StageConfig, config: Config) -> StagePlan:
    of_teacher = stage.net == "teacher"
    loss = _loss(name, stage, config)
    net, where, taps = _net(name, stage, loss, config)
    plan = StagePlan(
        name,
        _role(name, stage),
        net,
        where,
        _recipe(name, stage, config.teacher if of_teacher else config, config.trainer),
        "teacher." if of_teacher else "",
        loss,
        precision=config.teacher.precision if of_teacher else config.precision,
        teacher=stage.teacher if loss.teacher == "teacher" and stage.teacher else loss.teacher,
        start=stage.start,
        trains=stage.trains,
        fake_quantize=stage.fake_quantize,
        taps=taps,
        sees=_sees(of_teacher, loss),
    )
    if name == "teacher":
        return _with_teacher_start(plan, config)
    return _with_student_start(plan, config) if stage.net == "student" else plan


def _loss(name: str, stage: StageConfig, config: Config) -> LossSpec:
    """Read the stage's loss. This happens once per stage; everything else uses the result.

    Raises:
        UserError: the loss is invalid, or a term belongs to another command.
    """
    if stage.loss == "labels":
        return LABELS_ONLY
    node = config.loss
    where = "loss"
    if isinstance(stage.loss, dict):
        node = stage.loss
        where = f"stage.{name}.loss"
    spec = read_loss(node, where)
    for term in spec.terms:
        if term.command:
            raise UserError(
                f"{term.where}: {term.path} is for classes that come in tasks: python -m "
                f"{term.command} incremental.method=NAME; accepted here are the methods of "
                "docs/methods.md, such as loss=kd"
            )
    return spec


def _sees(of_teacher: bool, loss: LossSpec) -> Sees:
    """Choose what a stage sees: the teacher all; unlabelled images only if the loss uses them."""
    if of_teacher:
        return "all"
    return "transfer" if loss.uses_unlabeled else "labels"


def _net(
    name: str, stage: StageConfig, loss: LossSpec, config: Config
) -> tuple[Node, str, list[str] | None]:
    """Return a stage's net node, its config key, and the hooked layers named in the config."""
    if isinstance(stage.net, dict):
        return stage.net, f"stage.{name}.net", stage.taps
    if stage.net == "teacher":
        return config.teacher.net, "teacher.net", stage.taps or config.teacher.taps
    own = loss.node.get("net")
    if isinstance(own, dict):  # a method may replace the student's net
        return own, "loss.net", stage.taps
    return config.student.net, "student.net", stage.taps or config.student.taps


def _members(config: Config) -> dict[str, StagePlan]:
    """Return the stages of a teacher's ensemble members."""
    found = {}
    for i, name in enumerate(_names(config.teacher)):
        alone = config.model_copy(update={"teacher": config.teacher.member(i)})
        plan = _plan("teacher", config.stage["teacher"], alone)
        at = f"teacher.members[{i}]."
        found[name] = replace(plan, name=name, role=None, where=f"{at}net", recipe_at=at)
    return found


def _names(teacher: TeacherConfig) -> list[str]:
    """Name the stages of a teacher's ensemble members."""
    return [f"teacher_{i + 1}" for i in range(len(teacher.members or ()))]


def _with_teacher_start(plan: StagePlan, config: Config) -> StagePlan:
    """Return the plan with the teacher's start, and how much of it is trained."""
    teacher = config.teacher
    if teacher.members:
        members = tuple(_names(teacher))
        return replace(plan, net=_ensemble(teacher), trains="none", members=members)
    return replace(_with_start(plan, teacher), trains=teacher.trains)


def _with_student_start(plan: StagePlan, config: Config) -> StagePlan:
    """Return the plan with the student's start in a stage, and how much of it is trained.

    Raises:
        UserError: the loss replaces the net, so the weights in the file do not fit.
    """
    student = config.student
    if student.finetune and plan.trains == "all":
        plan = replace(plan, trains=student.finetune)
    if plan.start or plan.where != "student.net":
        if student.path and not plan.start:
            raise UserError(
                f"student.path: the loss of stage {plan.name} makes a net of its own of the "
                "student's, which cannot start from a file; accepted is null"
            )
        return plan
    return _with_start(plan, student)


def _with_start(plan: StagePlan, start: Start) -> StagePlan:
    return replace(
        plan,
        path=start.path,
        state=start.state,
        match=start.match,
        classes=start.classes,
        normalization=start.normalization,
    )


def _ensemble(teacher: TeacherConfig) -> Node:
    """Return the net node of a teacher's ensemble."""
    members = [teacher.member(i).net for i in range(len(teacher.members or ()))]
    if any(is_answers(each) for each in members):
        raise UserError(
            "teacher.members: a file of answers is no net and cannot be a member; average such "
            "files into one, and take teacher=answers without members"
        )
    if teacher.weights is not None and len(teacher.weights) != len(members):
        raise UserError(
            f"teacher.weights: found {teacher.weights}, needed is one for each of "
            f"{len(members)} members"
        )
    node: Node = {
        "_target_": "kd.teachers.ensemble.Ensemble",
        "members": members,
        "average": teacher.average,
    }
    if teacher.weights is not None:
        node["weights"] = teacher.weights
    if teacher.average == "probabilities":
        temperature = teacher.average_temperature
        if not isinstance(temperature, (int, float)) or temperature <= 0:
            raise UserError(
                f"teacher.average_temperature: found {temperature!r}, accepted is a number above 0"
            )
        node["temperature"] = float(temperature)
    return node


def _role(name: str, stage: StageConfig) -> Role | None:
    if name == "teacher":
        return "teacher"
    if name == "baseline":
        return "baseline"
    return "student" if stage.net == "student" else None


def _recipe(name: str, stage: StageConfig, base: Recipe, trainer: Mapping[str, object]) -> Recipe:
    """Return the net's recipe with the stage's changes."""
    own = {key: value for key in Recipe.model_fields if (value := getattr(stage, key)) is not None}
    recipe = {key: getattr(base, key) for key in Recipe.model_fields} | own
    for least, keys in LEAST.items():
        if least not in own and any(key in own for key in keys):
            recipe[least] = 0  # the stage's choice replaces it
    if stage.lr_factor != 1:
        if "lr" not in recipe["optim"]:
            raise UserError(f"stage.{name}.lr_factor: it multiplies optim.lr, which is not set")
        recipe["optim"] = {**recipe["optim"], "lr": recipe["optim"]["lr"] * stage.lr_factor}
    if "ema" in own or "swa" in own:  # the stage's choice replaces either
        recipe |= {"ema": stage.ema, "swa": stage.swa}
    if "batch_size" in own:
        recipe["batch_size_per_device"] = stage.batch_size_per_device
    at = "teacher." if isinstance(base, TeacherConfig) else ""
    if own:
        at = f"stage.{name}."
    whole = Recipe(**{**recipe, "seed": recipe["seed"] + stage.seed_offset})
    return check_recipe(whole, at, world_size(trainer))


def check_recipe(recipe: Recipe, at: str, devices: int) -> Recipe:
    """Check that the parts of a recipe fit each other; return it with its global batch size.

    Args:
        at: prefix of its keys in the config.

    Raises:
        UserError: a schedule is longer than the stage, or weights are averaged in two ways.
    """
    check_length(recipe.lr_schedule, recipe.epochs, f"{at}lr_schedule")
    if recipe.ema is not None and recipe.swa is not None:
        raise UserError(
            f"{at}swa: found {recipe.swa} beside ema={recipe.ema}, which averages too; "
            "accepted is one of the two"
        )
    if recipe.batch_size_per_device is None:
        return recipe
    whole = {"batch_size": recipe.batch_size_per_device * devices, "batch_size_per_device": None}
    return recipe.model_copy(update=whole)
