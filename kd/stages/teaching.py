"""A finished stage as the teacher of another, with stored answers if possible."""

from dataclasses import replace
from functools import partial

import torch

from kd.data.base import DataModule
from kd.data.epoch_views import APART
from kd.data.rendering import as_read
from kd.data.views import Augment
from kd.files.store import StageResult, key_of
from kd.log import bytes_of, number_of, say
from kd.nets.hooks import kinds_of
from kd.nets.layer_paths import study
from kd.shape import Shape
from kd.stages.answers import as_teacher, only_answers
from kd.stages.code_hash import code_of
from kd.stages.result import classes_of, load_net, load_teacher
from kd.stages.stage import Stage
from kd.teachers.answer_record import AnswerRecord, Sizes, sizes_of
from kd.teachers.cached_teacher import CachedTeacher
from kd.teachers.feature_teacher import FeatureTeacher
from kd.teachers.fused_teacher import FusedTeacher
from kd.teachers.live_teacher import LiveTeacher, Teacher
from kd.teachers.sized_teacher import SizedTeacher, TeacherViews
from kd.teachers.top_answers import checked_top_k
from kd.teachers.view_files import Room, ViewFiles

GB = 1e9


def teacher_of(
    stage: Stage, result: StageResult, data: DataModule, strong: Augment | None = None
) -> Teacher:
    """Return a finished stage as a teacher, with stored outputs if possible.

    Args:
        strong: augmentation of strong views, whose teacher is asked for; None for that of the
            data's views.
    """
    if strong is not None:
        spec = stage.spec.model_copy(update={"seed": stage.spec.seed + APART})
        stage, data = replace(stage, spec=spec), data.with_augment(strong)
    if only_answers(result):
        return as_teacher(load_net(result), data)
    reads = result.record.spec.reads
    images, pool = (each and as_read(each, reads) for each in (data.split.train, data.mixing_pool))
    assert images is not None
    drawn_at = data.split.train.pixels.shape[2:] if reads else None
    views = TeacherViews(images, data.augment, stage.spec.seed, pool, drawn_at)
    live, features = _live(stage, result)
    if stage.room is None or features is None:
        return SizedTeacher(live, views) if reads else live
    spec = stage.spec
    if spec.top_k is not None:
        checked_top_k(spec.top_k, classes_of(result))  # those of an earlier task are fewer
    record = AnswerRecord(classes_of(result), spec.outputs, spec.top_k, features)
    key = _key(stage, result, data, record)
    files = ViewFiles(stage.room, key, len(images), record, result.key)
    # The number of epochs is not known then
    epochs = 0 if spec.early_stopping else spec.epochs
    needed = min(epochs, data.views or epochs)
    _announce(stage.room, record, len(images), needed)
    return CachedTeacher(live, views, files=files, needed=needed)


def _live(stage: Stage, result: StageResult) -> tuple[LiveTeacher, Sizes | None]:
    """Return the teacher to ask, and the sizes of its stored features; None if nothing is stored.

    Features that are not stored need the net in each step, which gives the logits too.
    """
    spec = stage.spec
    kinds = kinds_of(stage.loss.signals, "t")
    how = (spec.outputs, spec.answered_in, spec.top_k)
    if not kinds:
        folded = FusedTeacher(partial(load_teacher, result), bool(stage.runtime.get("compile")))
        return LiveTeacher(folded, *how), {}
    answers = load_teacher(result)
    shape = Shape.of(result.record.spec.shape)
    paths = study(answers.net, spec.taps.get("teacher", []), shape, where="teacher.taps")
    stored = spec.features is not None
    seen = FeatureTeacher(answers, paths, kinds, *how, stored=stored)
    if not stored:
        return seen, None
    return seen, sizes_of(seen(torch.zeros(1, *shape.pixels), torch.zeros(1), 0))


def _key(stage: Stage, result: StageResult, data: DataModule, record: AnswerRecord) -> str:
    """Return a hash of all that the answers depend on, except the view's number."""
    net = result.record.spec.net
    reads = result.record.spec.reads
    spec = stage.spec
    key = {
        "teacher": [result.record.sha256, net, code_of(net), *result.record.normalization],
        "recipe": spec.recipe,
        "seed": spec.seed,
        "shape": spec.shape,
        "outputs": spec.outputs,
        "answered_in": spec.answered_in,
        "data": data.view_key(),
        **({"reads": reads} if reads else {}),
        **({"top_k": spec.top_k} if spec.top_k else {}),
        **({"features": [spec.taps, *record.features.items()]} if record.features else {}),
        "torch": torch.__version__,  # other versions may differ in the last bit
    }
    return key_of(key)


def _announce(room: Room, record: AnswerRecord, images: int, views: int) -> None:
    """Say how much the stored answers will take, where they are features or do not fit."""
    size = record.bytes * images * views / GB
    if not record.features and size <= room.limit:
        return
    each = f"{number_of(images, 'image')} x {record.bytes:,} bytes"
    text = f"{number_of(views, 'view')} of {each} = {bytes_of(size * GB)}"
    if size > room.limit:
        text += f", more than teacher.cache_limit={room.limit:g}: the rest is computed each time"
        if record.top_k is None and not record.features and record.classes > 5:
            small = AnswerRecord(record.classes, record.dtype, 5).bytes
            text += f". teacher.top_k=5 takes {bytes_of(size * GB * small / record.bytes)}"
    say(f"teacher.cache: {text}")
