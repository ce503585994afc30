"""The chain of stages: what each one trains, on what, and after which others; read from the config, before any data."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from kd.config.fields import Node, Trains
from kd.config.rates import check_length
from kd.config.schema import Config, Normalization, Recipe, StageConfig, Teacher
from kd.data.transfer import Sees
from kd.errors import UserError, nearest
from kd.training.loss_spec import LossSpec, read_loss

Role = Literal["teacher", "baseline", "student"]
LABELS_ONLY = read_loss({"ce_weight": 1.0, "terms": {}})


@dataclass(frozen=True)
class Link:
    """One stage as the config asks for it.

    Attributes:
        name: as in `stages=`.
        role: what its net is to the run's comparison; None for a net on the way, such as an assistant.
        net: what builds the net.
        where: the config's key of `net`, for messages; `recipe_at` is the prefix of the recipe's keys.
        loss: what it trains on.
        precision: the number format that it trains in, or `auto`.
        teacher: the earlier stage whose net answers for the views; None where the loss asks for none.
        start: the earlier stage to take the weights from; None for fresh ones.
        path: a file to take the weights from.
        state: which weights of that file, where it has several.
        classes: the classes of that file's net in order, or a file that names them; None for what it says itself.
        trains: all of the net, its last layer alone (head), none of it, or only what the loss learns itself (loss).
        fake_quantize: whether its layers round to 8 bits while it trains.
        normalization: what the weights in `path` were trained with, where the config says it.
        members: the earlier stages whose nets it consists of.
        taps: what a loss looks at in the net, by path; None for the net's own choice.
        teacher_net, teacher_taps: the same of the stage that teaches.
        sees: which training images and labels it is shown.
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
    classes: list[str] | str | None = None
    trains: Trains | Literal["loss"] = "all"
    fake_quantize: bool = False
    normalization: Normalization | None = None
    members: tuple[str, ...] = ()
    taps: list[str] | None = None
    teacher_net: Node | None = None
    teacher_taps: list[str] | None = None
    sees: Sees = "all"

    @property
    def given_at(self) -> str:
        """The prefix of the config's keys that say what the net starts from."""
        return self.where.removesuffix("net")


def chain_of(config: Config) -> list[Link]:
    """The stages of `stages=`, in order.

    Raises:
        UserError: for a stage that nothing defines, or one that comes before what it builds on; for whatever is wrong
            in a loss.
    """
    links: dict[str, Link] = {}
    for name in config.stages:
        if name not in config.stage:
            accepted = ", ".join(config.stage)
            raise UserError(
                f"stages: there is no {name!r}; accepted are {accepted}{nearest(name, config.stage)}"
            )
        if name == "teacher" and config.teacher.members:
            links |= _members(config)
        links[name] = link = _link(name, config.stage[name], config)
        for needed in (link.teacher, link.start):
            if needed and (needed == name or needed not in links):
                raise UserError(
                    f"stages: found [{', '.join(config.stages)}]; {name} builds on {needed}, which must come before "
                    "it (a finished stage is not trained again)"
                )
        if link.teacher:
            taught_by = links[link.teacher]
            links[name] = link = replace(
                link, teacher_net=taught_by.net, teacher_taps=taught_by.taps
            )
        if link.start and links[link.start].net != link.net:
            raise UserError(
                f"stage.{name}.start: {link.start} is another net than {name}, so its weights do not fit"
            )
    return list(links.values())


def _link(name: str, stage: StageConfig, config: Config) -> Link:
    of_teacher = stage.net == "teacher"
    loss = _loss(stage, config)
    net, where, taps = _net(name, stage, loss, config)
    link = Link(
        name,
        _role(name, stage),
        net,
        where,
        _recipe(name, stage, config.teacher if of_teacher else config),
        "teacher." if of_teacher else "",
        loss,
        precision=config.teacher.precision if of_teacher else config.trainer["precision"],
        teacher=stage.teacher if loss.teacher == "teacher" and stage.teacher else loss.teacher,
        start=stage.start,
        trains=stage.trains,
        fake_quantize=stage.fake_quantize,
        taps=taps,
        sees=_sees(of_teacher, loss),
    )
    if name == "teacher":
        return replace(link, **_given(config))
    return replace(link, **_started(link, config)) if stage.net == "student" else link


def _loss(stage: StageConfig, config: Config) -> LossSpec:
    """What a stage trains on. Each stage reads its own, once; all else takes it from there."""
    if stage.loss == "labels":
        return LABELS_ONLY
    return read_loss(config.loss if stage.loss == "method" else stage.loss)


def _sees(of_teacher: bool, loss: LossSpec) -> Sees:
    """The teacher is shown everything; images without a label only who is told something of them."""
    if of_teacher:
        return "all"
    return "transfer" if loss.uses_unlabeled else "labels"


def _net(
    name: str, stage: StageConfig, loss: LossSpec, config: Config
) -> tuple[Node, str, list[str] | None]:
    """What builds a stage's net, the config's key of that, and the taps that the config names for it."""
    if isinstance(stage.net, dict):
        return stage.net, f"stage.{name}.net", stage.taps
    if stage.net == "teacher":
        return config.teacher.net, "teacher.net", stage.taps or config.teacher.taps
    if own := loss.node.get("net"):  # a method may make another net of the student's
        return own, "loss.net", stage.taps
    return config.student.net, "student.net", stage.taps or config.student.taps


def _members(config: Config) -> dict[str, Link]:
    """The stages of a teacher's members."""
    found = {}
    for i, name in enumerate(_names(config.teacher)):
        alone = config.model_copy(update={"teacher": config.teacher.member(i)})
        link = _link("teacher", config.stage["teacher"], alone)
        at = f"teacher.members[{i}]."
        found[name] = replace(link, name=name, role=None, where=f"{at}net", recipe_at=at)
    return found


def _names(teacher: Teacher) -> list[str]:
    """What the stages of a teacher's members are called."""
    return [f"teacher_{i + 1}" for i in range(len(teacher.members or ()))]


def _given(config: Config) -> dict[str, Any]:
    """What the teacher starts from, and how much of it is trained."""
    teacher = config.teacher
    if teacher.members:
        return {"net": _ensemble(teacher), "trains": "none", "members": tuple(_names(teacher))}
    return {
        name: getattr(teacher, name)
        for name in ("path", "state", "classes", "trains", "normalization")
    }


def _started(link: Link, config: Config) -> dict[str, Any]:
    """What the student's net starts from in a stage, and how much of it is trained.

    Raises:
        UserError: the loss makes another net of it, whose weights those in the file are not.
    """
    student, found = config.student, dict[str, Any]()
    if student.finetune == "head" and link.trains == "all":
        found["trains"] = "head"
    if link.start or link.where != "student.net":
        if student.path and not link.start:
            raise UserError(
                f"student.path: the loss of stage {link.name} makes a net of its own of the student's, which cannot "
                "start from a file; accepted is null"
            )
        return found
    names = ("path", "state", "classes", "normalization")
    return found | {name: getattr(student, name) for name in names}


def _ensemble(teacher: Teacher) -> Node:
    """The net that a teacher's members are together."""
    members = [teacher.member(i).net for i in range(len(teacher.members or ()))]
    if teacher.weights is not None and len(teacher.weights) != len(members):
        raise UserError(
            f"teacher.weights: found {teacher.weights}, needed is one for each of {len(members)} members"
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


def _recipe(name: str, stage: StageConfig, base: Recipe) -> Recipe:
    """The net's recipe, with what the stage sets differently."""
    own = {key: value for key in Recipe.model_fields if (value := getattr(stage, key)) is not None}
    recipe = {key: getattr(base, key) for key in Recipe.model_fields} | own
    if stage.lr_factor != 1:
        if "lr" not in recipe["optim"]:
            raise UserError(f"stage.{name}.lr_factor: it multiplies optim.lr, which is not set")
        recipe["optim"] = {**recipe["optim"], "lr": recipe["optim"]["lr"] * stage.lr_factor}
    if "ema" in own or "swa" in own:  # its own choice between the two
        recipe |= {"ema": stage.ema, "swa": stage.swa}
    at = f"stage.{name}." if own else "teacher." if isinstance(base, Teacher) else ""
    return checked(Recipe(**{**recipe, "seed": recipe["seed"] + stage.seed_offset}), at)


def checked(recipe: Recipe, at: str) -> Recipe:
    """The recipe, whose parts fit each other.

    Args:
        at: prefix of its keys in the config.

    Raises:
        UserError: a schedule is longer than the stage, or weights are averaged in two ways.
    """
    check_length(recipe.lr_schedule, recipe.epochs, f"{at}lr_schedule")
    if recipe.ema is not None and recipe.swa is not None:
        raise UserError(
            f"{at}swa: found {recipe.swa} beside ema={recipe.ema}, which averages too; accepted is one of the two"
        )
    return recipe
