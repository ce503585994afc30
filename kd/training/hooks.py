"""Feature hooks on the net in training, as its loss needs them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kd.nets.hooks import Taps, kinds_of, offered
from kd.nets.layer_paths import Points, study
from kd.shape import Shape
from kd.training.loss_spec import LossSpec


def hook(
    net: nn.Module,
    spec: Mapping[str, Any],
    loss: LossSpec,
    teacher: Any,
    shape: Shape,
    labels: Tensor,
) -> tuple[Taps | None, dict[str, Any]]:
    """Hook the net in training as its loss needs it; also returns constructor arguments for that
    loss.

    Args:
        spec: of the stage.
        teacher: its teacher; one with features knows its own hooked layers.
        labels: of all training images, int64 [N], -1 for none.
    """
    kinds = kinds_of(loss.signals, "s")
    points: Points | None = getattr(teacher, "points", None)
    if not kinds:
        return None, offered(None, points, labels)
    own = study(
        net, spec.get("taps", {}).get("student", []), shape, where="student.taps", training=True
    )
    return Taps(net, own, kinds), offered(own, points, labels)
