"""Task schedule: which classes come when.

Read from the config and the class names, before any training.
"""

import random
from collections.abc import Collection, Sequence
from typing import Annotated, Literal, Self

from omegaconf import Container, DictConfig, OmegaConf
from pydantic import AfterValidator, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from kd.config.fields import Node
from kd.config.knobs import uses
from kd.config.schema import Strict, Training, check_training
from kd.errors import UnusedError, UserError, nearest

Task = tuple[int, ...]  # labels, as in the data


def _division(value: object) -> int | list[list[str | int]]:
    """Validate a number of tasks, or lists of classes."""
    if type(value) is int and value > 0:
        return value
    if isinstance(value, list) and value and all(isinstance(task, list) and task for task in value):
        return value
    raise ValueError(
        "accepted is a number from 1, or a list of classes for each task, as [[cat, dog], [frog]]"
    )


class Incremental(Strict):
    """Task schedule, and how the net treats earlier classes.

    Attributes:
        method: name of the recipe in conf/incremental/method, for people.
        tasks: number of tasks, as equal as possible, larger ones first; or the classes of each, by
            name.
        first, step: classes of the first and of each later task, instead of a number of tasks.
        order_seed: seed of the class order; null for the data's order. Listed tasks keep their
            order.
        exemplars: images kept of earlier classes, for training with the new ones; 0 keeps none.
        exemplars_per: whether that number is the total, or per class.
        weight: weight of the loss's teacher side; null for the loss file's.
        classifier: `logits`, the largest; or `nearest_mean`, the class with the nearest mean
            feature of exemplars.
        start_loss: objective of the first task; null for the cross-entropy.
        replay: teacher for exemplars: `snapshot`, the net before the task, for all images; or
            `stored`, the logits from when an exemplar was kept.
        align: whether to rescale the new classes' weights to the norm of the old ones after each
            task.
        keep_data: train on all images seen so far, the upper bound.
    """

    method: str
    tasks: Annotated[object, AfterValidator(_division)]
    first: PositiveInt | None
    step: PositiveInt | None
    order_seed: NonNegativeInt | None
    exemplars: NonNegativeInt
    exemplars_per: Literal["memory", "class"]
    weight: NonNegativeFloat | None
    classifier: Literal["logits", "nearest_mean"]
    start_loss: Node | None
    replay: Literal["snapshot", "stored"]
    align: bool
    keep_data: bool

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if (self.first is None) != (self.step is None):
            given, other = ("first", "step") if self.step is None else ("step", "first")
            raise UserError(f"incremental.{given}: also needs incremental.{other}")
        if not self.exemplars and (self.classifier == "nearest_mean" or self.replay == "stored"):
            raise UserError(
                f"incremental.exemplars: found 0; {self.method} needs some, accepted are 1 or more"
            )
        return self


class IncrementalConfig(Training):
    """Config of `kd.incremental`."""

    incremental: Incremental

    @model_validator(mode="after")
    def _refuse_taps(self) -> Self:
        if self.student.taps:
            raise UserError(
                f"student.taps: a net that grows is tapped nowhere; found {self.student.taps}, "
                f"accepted: null"
            )
        return self


def check(cfg: DictConfig, typed: Collection[str] = ()) -> IncrementalConfig:
    """Validate the composed config; see `kd.config.schema.check_training`."""
    config = check_training(IncrementalConfig, cfg, typed)
    if config.incremental.weight is not None and not uses(cfg, "incremental.weight"):
        raise UnusedError(
            "incremental.weight: the chosen loss does not use it, so it would change nothing"
        )
    return config


def make_tasks(asked: Incremental, classes: Sequence[str]) -> list[Task]:
    """Assign classes to tasks; returns the labels of each task, in the order of the classes.

    Args:
        classes: class names of the data, by label.

    Raises:
        UserError: too many tasks or classes, a class in two tasks, an unknown class, or fewer
            exemplars than classes.
    """
    tasks = (
        _tasks_of_lists(asked.tasks, classes)
        if isinstance(asked.tasks, list) and asked.step is None
        else None
    )
    if tasks is None:
        order = list(range(len(classes)))
        if asked.order_seed is not None:
            random.Random(asked.order_seed).shuffle(order)
        tasks = []
        start = 0
        for size in _sizes(asked, len(classes)):
            tasks.append(tuple(order[start : start + size]))
            start += size
    count = sum(map(len, tasks))
    if asked.exemplars_per == "memory" and 0 < asked.exemplars < count and not asked.keep_data:
        raise UserError(
            f"incremental.exemplars: found {asked.exemplars} for {count} classes, which is not "
            f"one of each; accepted "
            f"are {count} or more, or 0"
        )
    return tasks


def _sizes(asked: Incremental, classes: int) -> list[int]:
    """Return the number of classes of each task."""
    if asked.first is not None and asked.step is not None:
        if asked.first > classes:
            raise UserError(
                f"incremental.first: found {asked.first}, the data has {classes} classes"
            )
        steps = range(asked.first, classes, asked.step)
        return [asked.first, *(min(asked.step, classes - start) for start in steps)]
    assert isinstance(asked.tasks, int)
    if asked.tasks > classes:
        raise UserError(
            f"incremental.tasks: found {asked.tasks}, the data has {classes} classes; accepted "
            f"are 1 to {classes}"
        )
    least, more = divmod(classes, asked.tasks)
    return [least + (i < more) for i in range(asked.tasks)]


def _tasks_of_lists(lists: Sequence[Sequence[str | int]], classes: Sequence[str]) -> list[Task]:
    """Convert lists of class names to labels; a number that is no name is a label."""
    found: dict[int, int] = {}
    for i, names in enumerate(lists):
        for name in names:
            if str(name) in classes:
                label = classes.index(str(name))
            elif isinstance(name, int) and 0 <= name < len(classes):
                label = name
            else:
                raise UserError(
                    f"incremental.tasks[{i}]: there is no class {str(name)!r}; the data has "
                    f"{_few(classes)}"
                    f"{nearest(str(name), classes)}"
                )
            if label in found:
                raise UserError(
                    f"incremental.tasks: class {classes[label]!r} is in task {found[label] + 1} "
                    f"and in task {i + 1}; "
                    "each class comes once"
                )
            found[label] = i
    return [tuple(label for label, task in found.items() if task == i) for i in range(len(lists))]


def _few(classes: Sequence[str]) -> str:
    return ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")


def tasks_name(*, _root_: Container) -> str:
    """Format division, method, weight and exemplars for the run's name.

    `5_tasks_icarl_e200`.
    """
    asked: DictConfig = OmegaConf.select(_root_, "incremental")
    if asked.step is not None:
        division = f"{asked.first}_and_{asked.step}"
    elif isinstance(asked.tasks, int):
        division = str(asked.tasks)
    else:
        division = (
            "-".join(str(len(task)) for task in asked.tasks)
            if OmegaConf.is_list(asked.tasks)
            else "unknown"
        )
    weight = "" if asked.weight is None else f"_w{asked.weight}"
    kept = (
        f"_e{asked.exemplars}{'_each' if asked.exemplars_per == 'class' else ''}"
        if asked.exemplars
        else ""
    )
    return f"{division}_tasks_{asked.method}{weight}{kept}"


OmegaConf.register_new_resolver("tasks_name", tasks_name, replace=True)
