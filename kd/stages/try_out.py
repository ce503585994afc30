"""Trial of a stage's loss on its two nets before training: does everything fit?"""

import torch
from torch import nn

from kd.data.base import DataModule
from kd.errors import UserError
from kd.log import say
from kd.nets.build import build_net
from kd.nets.hooks import LISTS, FeatureHooks, Side, as_signals, build_arguments, kinds_of
from kd.nets.layer_paths import study
from kd.nets.pairing import pair
from kd.shape import Shape
from kd.stages.chain import StagePlan
from kd.training.objective import Objective


def taps_of(plan: StagePlan, shape: Shape) -> dict[str, list[str]]:
    """Return the hooked layers of a stage's net and its teacher's; empty if the loss uses none.

    Raises:
        UserError: there are none, or unequal numbers.
    """
    asked = plan.loss.signals
    if not any(kind in kinds_of(asked, side) for kind in LISTS for side in ("s", "t")):
        return {}
    student, teacher = _nets(plan, shape)
    one, two = pair(
        student, teacher, plan.taps, plan.teacher_taps, shape, stem=plan.loss.wants_stem
    )
    return {"student": one, "teacher": two}


def try_out(plan: StagePlan, data: DataModule) -> Objective:
    """Build a stage's objective as a trial; a feature loss is also computed on two random images.

    Raises:
        UserError: a wrong path, or features that the loss does not accept.
    """
    asked = plan.loss.signals
    if not kinds_of(asked, "s") + kinds_of(asked, "t"):
        return Objective(plan.loss, data.shape)
    student, teacher = _nets(plan, data.shape)
    taps = taps_of(plan, data.shape)
    if taps and not (plan.taps and plan.teacher_taps):
        beside = f", with {', '.join(taps['teacher'])} of its teacher" if teacher else ""
        say(f"{plan.name}: looks at {', '.join(taps['student'])} of the student{beside}")
    labels = data.split.train.labels
    paths = {}
    signals = {"target": torch.zeros(2, dtype=torch.int64), "index": torch.arange(2)}
    x = torch.randn(2, data.shape.channels, data.shape.image_size, data.shape.image_size)
    sides: tuple[tuple[Side, nn.Module | None, str], ...] = (
        ("s", student, "student"),
        ("t", teacher, "teacher"),
    )
    for side, net, role in sides:
        if net is not None:
            paths[side] = study(
                net, taps.get(role, []), data.shape, where=f"{role}.taps", training=side == "s"
            )
            with torch.no_grad():
                hooks = FeatureHooks(net.eval(), paths[side], kinds_of(asked, side))
                signals |= as_signals(hooks(net, x), side)
    where = "loss"
    objective = Objective(
        plan.loss,
        data.shape,
        build_arguments=build_arguments(paths.get("s"), paths.get("t"), labels),
    )
    try:
        objective({"x": x, "epoch": 0, "progress": 0.0, **signals})
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"{where}: does not accept the features: {str(error).partition(chr(10))[0]}"
        ) from error
    return objective


def _nets(plan: StagePlan, shape: Shape) -> tuple[nn.Module, nn.Module | None]:
    """Return a stage's net, and its teacher's if the loss needs features, with fresh weights."""
    student = build_net(plan.net, shape, plan.where, load=False, trained=True)
    if plan.teacher_net is None or not kinds_of(plan.loss.signals, "t"):
        return student, None
    return student, build_net(plan.teacher_net, shape, "teacher.net", load=False)
