"""The chain of stages: what each one trains, on what, and after which others; read from the config, before any data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kd.config import Config, Node, Normalization, Recipe, StageConfig, Trains
from kd.errors import UserError, nearest
from kd.objective import teacher_stage

Role = Literal["teacher", "baseline", "student"]
LABELS_ONLY: Node = {"ce_weight": 1.0, "terms": {}}


@dataclass(frozen=True)
class Link:
    """One stage as the config asks for it.

    Attributes:
        name: as in `stages=`.
        role: what its net is to the run's comparison; None for a net on the way, such as an assistant.
        net: what builds the net.
        where: the config's key of `net`, for messages; `recipe_at` is the prefix of the recipe's keys.
        objective: what it trains on.
        teacher: the earlier stage whose net answers for the views; None where the objective asks for none.
        start: the earlier stage to take the weights from; None for fresh ones.
        path: a file to take the weights from.
        trains: all of the net, its last layer alone (head), or none of it.
        normalization: what the weights in `path` were trained with, where the config says it.
    """

    name: str
    role: Role | None
    net: Node
    where: str
    recipe: Recipe
    recipe_at: str
    objective: Node
    teacher: str | None = None
    start: str | None = None
    path: str | None = None
    trains: Trains = "all"
    normalization: Normalization | None = None


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
            raise UserError(f"stages: there is no {name!r}; accepted are {accepted}{nearest(name, config.stage)}")
        links[name] = link = _link(name, config.stage[name], config)
        for needed in (link.teacher, link.start):
            if needed and (needed == name or needed not in links):
                raise UserError(
                    f"stages: found [{', '.join(config.stages)}]; {name} builds on {needed}, which must come before "
                    "it (a finished stage is not trained again)"
                )
        if link.start and links[link.start].net != link.net:
            raise UserError(f"stage.{name}.start: {link.start} is another net than {name}, so its weights do not fit")
    return list(links.values())


def _link(name: str, stage: StageConfig, config: Config) -> Link:
    of_teacher = stage.net == "teacher"
    net = stage.net if isinstance(stage.net, dict) else config.teacher.net if of_teacher else config.student.net
    named = {"labels": LABELS_ONLY, "method": config.loss}
    objective = named[stage.loss] if isinstance(stage.loss, str) else stage.loss
    return Link(
        name,
        _role(name, stage),
        net,
        f"stage.{name}.net" if isinstance(stage.net, dict) else f"{stage.net}.net",
        _recipe(name, stage, config.teacher if of_teacher else config),
        "teacher." if of_teacher else "",
        objective,
        teacher=_teacher(stage, objective),
        start=stage.start,
        **(_given(config) if name == "teacher" else {}),
    )


def _given(config: Config) -> dict[str, Any]:
    """What the teacher starts from, and how much of it is trained."""
    teacher = config.teacher
    return {"path": teacher.path, "trains": teacher.trains, "normalization": teacher.normalization}


def _teacher(stage: StageConfig, objective: Mapping[str, Any]) -> str | None:
    """A method may be defined by who teaches (teacher-free ones); otherwise the stage says it."""
    asked = teacher_stage(objective)
    return stage.teacher if asked == "teacher" and stage.teacher else asked


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
    return Recipe(**{**recipe, "seed": recipe["seed"] + stage.seed_offset})
