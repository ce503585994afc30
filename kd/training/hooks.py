"""Feature hooks on the net in training, as its loss needs them."""

import math

from torch import Tensor, nn

from kd.files.stage_record import StageSpec
from kd.nets.hooks import FeatureHooks, build_arguments, kinds_of
from kd.nets.layer_paths import study
from kd.shape import Shape
from kd.teachers.live_teacher import Teacher
from kd.training.loss_spec import LossSpec


def hook(
    net: nn.Module,
    spec: StageSpec,
    loss: LossSpec,
    teacher: Teacher | None,
    shape: Shape,
    labels: Tensor,
    ranks: int = 1,
) -> tuple[FeatureHooks | None, dict[str, object]]:
    """Hook the net in training for its loss; also returns constructor arguments for that loss.

    Args:
        spec: of the stage.
        teacher: its teacher; one with features knows its own hooked layers.
        labels: of all training images, int64 [N], -1 for none.
        ranks: processes that share a batch.
    """
    share = math.ceil(spec.batch_size / ranks)
    kinds = kinds_of(loss.signals, "s")
    paths = teacher.paths if teacher is not None else None
    if not kinds:
        return None, build_arguments(None, paths, labels, share)
    own = study(net, spec.taps.get("student", []), shape, where="student.taps", training=True)
    return FeatureHooks(net, own, kinds), build_arguments(own, paths, labels, share)
