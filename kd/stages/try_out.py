"""Trial of a stage's loss on its two nets before training: hooked layers, and whether everything
fits.
"""

import torch
from torch import nn

from kd.data.base import DataModule
from kd.errors import UserError
from kd.log import say
from kd.nets.build import build_net
from kd.nets.hooks import TAPPED, Side, Taps, kinds_of, named, offered
from kd.nets.layer_paths import study
from kd.nets.pairing import pair
from kd.shape import Shape
from kd.stages.chain import Link
from kd.training.objective import Objective


def taps_of(link: Link, shape: Shape) -> dict[str, list[str]]:
    """Return the hooked layers of a stage's net and its teacher's, `student` and `teacher`; empty
    if unused.

    Raises:
        UserError: there are none, or unequal numbers.
    """
    asked = link.loss.signals
    if not any(kind in kinds_of(asked, side) for kind in TAPPED for side in ("s", "t")):
        return {}
    student, teacher = _nets(link, shape)
    one, two = pair(
        student, teacher, link.taps, link.teacher_taps, shape, stem=link.loss.wants_stem
    )
    return {"student": one, "teacher": two}


def try_out(link: Link, data: DataModule) -> Objective:
    """Build a stage's objective as a trial; a feature loss is also computed on two random images.

    Raises:
        UserError: a wrong path, or features that the loss does not accept.
    """
    asked = link.loss.signals
    if not kinds_of(asked, "s") + kinds_of(asked, "t"):
        return Objective(link.loss, data.shape)
    student, teacher = _nets(link, data.shape)
    taps = taps_of(link, data.shape)
    if taps and not (link.taps and link.teacher_taps):
        beside = f", with {', '.join(taps['teacher'])} of its teacher" if teacher else ""
        say(f"{link.name}: looks at {', '.join(taps['student'])} of the student{beside}")
    labels = data.split.train.labels
    points, signals = {}, {"target": torch.zeros(2, dtype=torch.int64), "index": torch.arange(2)}
    x = torch.randn(2, data.shape.channels, data.shape.image_size, data.shape.image_size)
    sides: tuple[tuple[Side, nn.Module | None, str], ...] = (
        ("s", student, "student"),
        ("t", teacher, "teacher"),
    )
    for side, net, role in sides:
        if net is not None:
            points[side] = study(
                net, taps.get(role, []), data.shape, where=f"{role}.taps", training=side == "s"
            )
            with torch.no_grad():
                logits, seen = Taps(net.eval(), points[side], kinds_of(asked, side))(net, x)
            signals |= {f"logits_{side}": logits, **named(seen, side)}
    where = "loss"
    objective = Objective(
        link.loss, data.shape, offered=offered(points.get("s"), points.get("t"), labels)
    )
    try:
        objective({"x": x, "epoch": 0, "progress": 0.0, **signals})
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"{where}: cannot take what the taps give: {str(error).partition(chr(10))[0]}"
        ) from error
    return objective


def _nets(link: Link, shape: Shape) -> tuple[nn.Module, nn.Module | None]:
    """Return a stage's net, and its teacher's if the loss needs features, with fresh weights."""
    student = build_net(link.net, shape, link.where, load=False, trained=True)
    if link.teacher_net is None or not kinds_of(link.loss.signals, "t"):
        return student, None
    return student, build_net(link.teacher_net, shape, "teacher.net", load=False)
