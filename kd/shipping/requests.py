"""Request to `kd.export`, checked before torch is imported, which takes seconds."""

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from kd.config.fields import Node
from kd.config.schema import RunRequest
from kd.errors import UserError, nearest

# Export formats, with their file endings.
FORMATS = {"onnx": ".onnx", "int8": ".int8.onnx", "pt2": ".pt2"}


def _formats(found: list[str]) -> list[str]:
    for name in found:
        if name not in FORMATS:
            raise UserError(
                f"formats: found {name!r}; accepted are "
                f"{', '.join(FORMATS)}{nearest(name, FORMATS)}"
            )
    return [name for name in FORMATS if name in found]


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
