"""`teacher.net.pretrained=auto`: pretrained weights if they can be had, else from scratch."""

import contextlib
import socket
from collections.abc import Iterator

from kd.config.schema import Config
from kd.data.base import DataModule
from kd.errors import UserError
from kd.nets.build import build_net, pretrained_weights_of

PATIENCE = 20.0  # seconds without an answer after which a download is given up


def choose_weights(config: Config, data: DataModule) -> Config:
    """Return the config with `teacher.net.pretrained` as true or false; notes which, and why.

    Weights are looked for in torch's cache, and downloaded where there is a network.
    """
    teacher = config.teacher
    if teacher.net.get("pretrained") != "auto":
        return config
    node = {**teacher.net, "pretrained": True}
    found = False
    if teacher.path is None:
        try:
            with _patience():
                build_net(node, data.teacher_shape, "teacher.net")
            weights = pretrained_weights_of(node, "teacher.net")
            name = weights.weights if weights else "those of the net's own file"
        except UserError as error:
            reason = " ".join(str(error).split("\n")[0].split())
            reason = reason.removeprefix("teacher.net: ").rstrip(".")
            data.note(
                "the teacher starts from scratch, since there are no pretrained weights "
                f"({reason}). From few images it learns little then: expect an accuracy far below "
                "that of a pretrained net. Better are these weights, teacher.path=FILE with "
                "others, or more images"
            )
        else:
            found = True
            data.note(
                f"the teacher starts from pretrained weights: {name}; "
                "teacher.net.pretrained=false starts from scratch, teacher=NAME takes another net"
            )
    net = {**teacher.net, "pretrained": found}
    return config.model_copy(update={"teacher": teacher.model_copy(update={"net": net})})


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
