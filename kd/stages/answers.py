"""Answers of a teacher that is elsewhere: the one place where stages treat them unlike a net."""

from pathlib import Path

from torch import Tensor, nn

from kd.config.construct import resolve_target
from kd.data.base import DataModule, Images
from kd.errors import UserError
from kd.files.stage_record import StageSpec
from kd.files.store import StageResult
from kd.measure.metrics import predict_logits
from kd.nets.answers import Answers
from kd.teachers.stored_teacher import StoredTeacher


def is_answers(node: object) -> bool:
    """Whether a net's config node is a file of answers in the place of a net."""
    return resolve_target(node, "net")[0] is Answers


def only_answers(result: StageResult) -> bool:
    """Whether a finished stage has answers for images by name, and no net."""
    return is_answers(result.record.spec.net)


def known_logits(net: nn.Module, data: DataModule, images: Images) -> Tensor:
    """Return logits [N, C] for unaugmented images; NaN where a file of answers has none."""
    if not isinstance(net, Answers):
        return predict_logits(net, data, images)
    split = data.split
    numbered_anew = not set(split.test.names).isdisjoint([*split.train.names, *split.val.names])
    return net.answers_for(images.names, images is split.test and numbered_anew, _all_names(data))


def validation_logits(net: nn.Module, data: DataModule) -> Tensor | None:
    """Return logits [N, C] for the validation images; None without such, or answers for all."""
    found = known_logits(net, data, data.split.val) if data.split.val else None
    unknown = isinstance(net, Answers) and found is not None and bool(found.isnan().any())
    return None if unknown else found


def as_teacher(net: nn.Module, data: DataModule) -> StoredTeacher:
    """Return the teacher that replays a file's answers, one for all views of an image.

    Raises:
        UserError: it has none for some of the training images.
    """
    assert isinstance(net, Answers)
    every = _all_names(data)
    net.check(data.training_images.names, "teacher.path", every)
    return StoredTeacher(net.answers_for(data.split.train.names, others=every))


def _all_names(data: DataModule) -> list[str]:
    split = data.split
    return [*data.source_names, *split.train.names, *split.val.names, *split.test.names]


def load_answers(net: nn.Module, file: Path, where: str, spec: StageSpec, data: DataModule) -> None:
    """Read a teacher's answers, checked against the classes and the training images.

    Args:
        net: of a stage; one that is no file of answers is left as it is.
        where: config key of the file, for messages.

    Raises:
        UserError: some are missing, or views mix images, for which there are no answers.
    """
    if not isinstance(net, Answers):
        return
    if data.augment.mixes:
        raise UserError(
            f"{where}: answers are for single images, and data.augment mixes them; accepted are "
            "data.augment.mixup=0 data.augment.cutmix=0"
        )
    said = spec.outputs_of_file
    net.read_file(file, where, data.classes, (said.taken, said.of) if said else None)
    seen = data.for_stage("transfer")
    net.check(seen.training_images.names, where, _all_names(seen))
