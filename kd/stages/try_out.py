"""Trial of a stage's loss on its two nets before training: does everything fit?"""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kd.data.base import DataModule
from kd.errors import UserError
from kd.log import say
from kd.nets.batch_norms import batch_norms
from kd.nets.build import build_net
from kd.nets.hooks import LISTS, FeatureHooks, Side, as_signals, build_arguments, kinds_of
from kd.nets.layer_paths import study
from kd.nets.pairing import pair
from kd.shape import Shape
from kd.stages.chain import StagePlan
from kd.training.loss_spec import STRONG, TermSpec
from kd.training.objective import Objective


def taps_of(plan: StagePlan, data: DataModule) -> dict[str, list[str]]:
    """Return the hooked layers of a stage's net and its teacher's; empty if the loss uses none.

    Raises:
        UserError: there are none, or unequal numbers.
    """
    asked = plan.loss.signals
    if not any(kind in kinds_of(asked, side) for kind in LISTS for side in ("s", "t")):
        return {}
    student, teacher = _nets(plan, data)
    shapes = data.shape, _teacher_shape(plan, data)
    one, two = pair(
        student, teacher, plan.taps, plan.teacher_taps, *shapes, stem=plan.loss.wants_stem
    )
    return {"student": one, "teacher": two}


def try_out(plan: StagePlan, data: DataModule) -> Objective:
    """Build a stage's objective as a trial; a feature loss, or one of the user's own, is also
    computed on two random images.

    Raises:
        UserError: a wrong path, features that the loss does not accept, or a loss that gives no
            scalar or no gradient.
    """
    asked = plan.loss.signals
    own = [term for term in plan.loss.terms if not term.path.startswith("kd.")]
    features = kinds_of(asked, "s") + kinds_of(asked, "t")
    if not (features or own):
        return Objective(plan.loss, data.shape)
    taps = taps_of(plan, data)
    if taps and not (plan.taps and plan.teacher_taps):
        beside = f", with {', '.join(taps['teacher'])} of its teacher" if taps["teacher"] else ""
        say(f"{plan.name}: looks at {', '.join(taps['student'])} of the student{beside}")
    objective, signals = _with_signals(plan, data, taps, images=2)
    for name, value in signals.items():
        if name.endswith("_s"):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, Tensor):
                    each.requires_grad_()
    try:
        parts = objective(signals)
    except (RuntimeError, ValueError, IndexError) as error:
        what = "the features" if features else "two random images"
        raise UserError(
            f"loss: does not accept {what}: {str(error).partition(chr(10))[0]}"
        ) from error
    for term in own:
        _check_value(parts[f"loss_{term.name}"], term)
    return objective


def _check_value(value: object, term: TermSpec) -> None:
    """Refuse what is no scalar, or would teach the student nothing."""
    if not isinstance(value, Tensor) or value.ndim:
        found = f"values {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise UserError(
            f"{term.where}: {term.path} gives {found} for two images; needed is a tensor with one "
            "number, such as .mean() over the images"
        )
    if not value.requires_grad:
        raise UserError(
            f"{term.where}: {term.path} gives a number without a gradient, so the student would "
            "learn nothing from it; what depends on the student must not pass .detach(), .item() "
            "or float()"
        )


def depends_on_batch(plan: StagePlan, data: DataModule, trainer: Mapping[str, object]) -> bool:
    """Whether a training depends on how many images a device sees at once.

    Batch norm makes it so, unless it is over all devices. So do images that lack a label, as the
    mean is over those that have one. So does a loss that compares the images of a batch: on four
    random images it is not the mean of the losses of both halves.

    Args:
        data: as the stage sees it.
        trainer: the config's options of the Trainer.
    """
    student, _ = _nets(plan, data)
    normed = plan.trains != "frozen_norms" and bool(batch_norms(student))
    if normed and not trainer.get("sync_batchnorm"):
        return True
    if bool((data.split.train.labels < 0).any()):
        return True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        objective, signals = _with_signals(plan, data, taps_of(plan, data), images=4)
        try:
            whole = _losses(objective, signals, slice(4))
            first = _losses(objective, signals, slice(2))
            second = _losses(objective, signals, slice(2, 4))
        except (RuntimeError, ValueError, IndexError):
            return True
    means = [(one + other) / 2 for one, other in zip(first, second, strict=True)]
    pairs = zip(whole, means, strict=True)
    return not all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in pairs)


def _losses(objective: Objective, signals: Mapping[str, object], part: slice) -> list[float]:
    """The losses of some of the images, each as if it were the first."""
    torch.manual_seed(0)
    own = {name: _rows(value, part) for name, value in signals.items()}
    parts = copy.deepcopy(objective)(own)
    return [float(value.detach()) for name, value in parts.items() if name.startswith("loss_")]


def _rows(value: object, part: slice) -> object:
    """Return some images of a signal; a value that is not of images stays."""
    if isinstance(value, list):
        return [_rows(each, part) for each in value]
    return value[part] if isinstance(value, Tensor) else value


def _with_signals(
    plan: StagePlan, data: DataModule, taps: Mapping[str, list[str]], images: int
) -> tuple[Objective, dict[str, object]]:
    """A stage's objective, and what it is given in the middle of a training, for random images."""
    asked = plan.loss.signals
    shape = data.shape
    x = torch.randn(images, *shape.pixels)
    index = torch.arange(images)
    signals: dict[str, object] = {"x": x, "target": index % shape.num_classes, "index": index}
    signals |= {"epoch": 0, "progress": 0.5}
    signals |= {name: torch.randn(images, shape.num_classes) for name in STRONG}
    paths = {}
    student, teacher = _nets(plan, data)
    shape_t = _teacher_shape(plan, data)
    x_t = x if shape_t == shape else torch.randn(images, *shape_t.pixels)
    sides: tuple[tuple[Side, nn.Module | None, str, Shape, Tensor], ...] = (
        ("s", student, "student", shape, x),
        ("t", teacher, "teacher", shape_t, x_t),
    )
    for side, net, role, of_net, seen in sides:
        if net is None:
            signals[f"logits_{side}"] = torch.randn(images, shape.num_classes)
            continue
        paths[side] = study(
            net, taps.get(role, []), of_net, where=f"{role}.taps", training=side == "s"
        )
        with torch.no_grad():
            hooks = FeatureHooks(net.eval(), paths[side], kinds_of(asked, side))
            signals |= as_signals(hooks(net, seen), side)
    labels = data.split.train.labels
    given = build_arguments(paths.get("s"), paths.get("t"), labels, plan.recipe.batch_size)
    return Objective(plan.loss, shape, build_arguments=given), signals


def _teacher_shape(plan: StagePlan, data: DataModule) -> Shape:
    return data.teacher_shape if plan.teacher_sees == "all" else data.shape


def _nets(plan: StagePlan, data: DataModule) -> tuple[nn.Module, nn.Module | None]:
    """Return a stage's net, and its teacher's if the loss needs features, with fresh weights."""
    student = build_net(plan.net, data.shape, plan.where, load=False, trained=True)
    if plan.teacher_net is None or not kinds_of(plan.loss.signals, "t"):
        return student, None
    return student, build_net(
        plan.teacher_net, _teacher_shape(plan, data), "teacher.net", load=False
    )
