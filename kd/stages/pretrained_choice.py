"""`pretrained: auto`: pretrained weights if they can be had, else from scratch."""

import contextlib
import socket
from collections.abc import Iterator

from kd.config.schema import Config, Start
from kd.data.base import DataModule
from kd.errors import UserError
from kd.nets.build import build_net, pretrained_weights_of
from kd.shape import Shape

PATIENCE = 20.0  # seconds without an answer after which a download is given up


def choose_weights(config: Config, data: DataModule) -> Config:
    """Return the config with each net's `pretrained` as true or false; notes which, and why.

    Weights are looked for in torch's cache, and downloaded where there is a network.
    """
    parts = {
        "teacher": (config.teacher, data.teacher_shape),
        "student": (config.student, data.shape),
    }
    chosen = {
        role: part.model_copy(update={"net": _with_choice(role, part, shape, data)})
        for role, (part, shape) in parts.items()
        if part.net.get("pretrained") == "auto"
    }
    return config.model_copy(update=chosen) if chosen else config


def _with_choice(role: str, part: Start, shape: Shape, data: DataModule) -> dict[str, object]:
    """Return a net's node with the choice made."""
    node = {**part.net, "pretrained": True}
    where = f"{role}.net"
    if part.path is not None:
        return {**node, "pretrained": False}
    try:
        with _patience():
            build_net(node, shape, where)
    except UserError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        reason = reason.removeprefix(f"{where}: ").rstrip(".")
        other = (
            "or more images" if role == "teacher" else "or student=cnn, made to start from scratch"
        )
        data.note(
            f"the {role} starts from scratch, since there are no pretrained weights ({reason}). "
            "From few images it learns little then: expect an accuracy far below that of a "
            f"pretrained net. Better are these weights, {role}.path=FILE with others, "
            f"{other}"
        )
        return {**node, "pretrained": False}
    weights = pretrained_weights_of(node, where)
    name = weights.weights if weights else "those of the net's own file"
    data.note(
        f"the {role} starts from pretrained weights: {name}; {where}.pretrained=false starts from "
        f"scratch, {role}=NAME takes another net"
    )
    return node


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
