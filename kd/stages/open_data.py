"""The run's images; a pretrained teacher's are read as its weights were published."""

import json
from typing import get_args

from kd.config.construct import construct, parameters_of, resolve_target
from kd.config.fields import Interpolation
from kd.config.schema import Config
from kd.data.base import DataModule
from kd.nets.build import pretrained_weights_of

Reads = dict[str, object]


def open_data(config: Config) -> DataModule:
    """Build the data module of a config.

    Raises:
        UserError: it cannot be built, or the teacher asks for weights that nobody has.
    """
    published = published_reading(config)
    node = {**config.data, "teacher_reading": published} if published else config.data
    data = construct(node, "data")
    assert isinstance(data, DataModule)
    if published and data.teacher_reads:
        words = " ".join(f"teacher.{name}={value}" for name, value in published.items())
        data.note(
            f"the teacher's images are read as where its weights were published: {words}. "
            "What is typed wins; the size costs the most time"
        )
    return data


def source_key(config: Config) -> str:
    """Return what the images and their labels depend on, as JSON; equal ones are read once.

    Without a choice of labels its seed changes nothing.
    """
    node = dict(config.data)
    if node.get("labels") is None and not node.get("val_labels"):
        node.pop("labels_seed", None)
    return json.dumps([node, published_reading(config)], sort_keys=True)


def published_reading(config: Config) -> Reads | None:
    """Return how a pretrained teacher's images are read, with what the config says itself.

    None where the teacher starts from a file or from scratch, or has members. None where it takes
    what weights there are (`pretrained: auto`). None for data without image files, whose arrays are
    all there is to read.
    """
    teacher = config.teacher
    asked = teacher.net.get("pretrained")
    if "teacher" not in config.stages or teacher.path or teacher.members or asked in (None, "auto"):
        return None
    target, _ = resolve_target(config.data, "data")
    if "crop_ratio" not in parameters_of(target):
        return None
    weights = pretrained_weights_of(teacher.net, "teacher.net")
    if weights is None:
        return None
    found: Reads = dict(weights.reading)
    if "img_size" in teacher.net:  # a transformer that timm builds for that size
        found["image_size"] = teacher.net["img_size"]
    if found["interpolation"] not in get_args(Interpolation):
        del found["interpolation"]
    typed = config.data.get("teacher_reading")
    found |= typed if isinstance(typed, dict) else {}
    if found["resize"] != "crop" and teacher.crop_ratio is None:
        found["crop_ratio"] = 1.0
    return found
