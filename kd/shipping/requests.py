"""Requests to `kd.export` and `kd.publish`, checked before the slow import of torch."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from kd.config.fields import Node
from kd.config.schema import RunRequest
from kd.errors import UserError, nearest

# Export formats, with their file endings.
FORMATS = {
    "onnx": ".onnx",
    "fp16": ".fp16.onnx",
    "int8": ".int8.onnx",
    "pt2": ".pt2",
    "openvino": ".xml",
    "litert": ".tflite",
}


def _formats(found: list[str]) -> list[str]:
    for name in found:
        if name not in FORMATS:
            raise UserError(
                f"formats: found {name!r}; accepted are "
                f"{', '.join(FORMATS)}{nearest(name, FORMATS)}"
            )
    return [name for name in FORMATS if name in found]


HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # of a model on the Hugging Face hub


def _hub_name(found: str | None) -> str | None:
    if found is not None and not HUB_NAME.fullmatch(found):
        raise UserError(f"push: found {found!r}; accepted are null and USER/NAME")
    return found


class Publish(RunRequest):
    """Config of `kd.publish`; see conf/publish.yaml."""

    push: Annotated[str | None, AfterValidator(_hub_name)]
    private: bool
    license: str | None


class Export(RunRequest):
    """Config of `kd.export`; see conf/export.yaml."""

    formats: Annotated[list[str], Field(min_length=1), AfterValidator(_formats)]
    role: str
    normalize: bool
    calibration: PositiveInt
    tolerance: PositiveFloat
    max_loss: NonNegativeFloat
    data: Node
    output_dir: str
