"""Requests to `kd.evaluate` and `kd.benchmark`, checked before the slow import of torch."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    model_validator,
)

from kd.config.fields import Node, Seed
from kd.config.schema import RunRequest, Strict
from kd.errors import UserError, nearest

# Backends: PyTorch as it is, torch.compile, and the formats of kd.export.
BACKENDS = ("eager", "compile", "pt2", "onnx", "onnx_fp16", "onnx_int8", "openvino", "litert")


def _backends(found: list[str]) -> list[str]:
    for name in found:
        if name not in BACKENDS:
            raise UserError(
                f"backends: found {name!r}; accepted are "
                f"{', '.join(BACKENDS)}{nearest(name, BACKENDS)}"
            )
    return list(dict.fromkeys(found))


class Benchmark(RunRequest):
    """Config of `kd.benchmark`; see conf/benchmark.yaml."""

    backends: Annotated[list[str], Field(min_length=1), AfterValidator(_backends)]
    batches: Annotated[list[Annotated[int, Field(gt=0, le=2**16)]], Field(min_length=1)]
    seconds: PositiveFloat
    threads: Annotated[int, Field(gt=0, le=4096)] | None


def _corruptions(found: object) -> list[str]:
    """Return the names of the requested corruptions."""
    from kd.measure.corruptions import CORRUPTIONS

    if isinstance(found, bool):
        return list(CORRUPTIONS) if found else []
    names = found if isinstance(found, list) else [found]
    for name in names:
        if not isinstance(name, str) or name not in CORRUPTIONS:
            known = ", ".join(CORRUPTIONS)
            raise UserError(
                f"corruptions: found {name!r}; accepted are true, false, or a list of {known}"
                f"{nearest(str(name), CORRUPTIONS)}"
            )
    return list(dict.fromkeys(names))


def _name(found: object) -> object:
    # Such as a digit, which YAML reads as a number
    return str(found) if type(found) is int else found


class OperatingPoint(Strict):
    """Threshold for a positive, chosen on validation; see conf/evaluate.yaml."""

    positive: Annotated[str | None, BeforeValidator(_name)]
    sensitivity: Annotated[float, Field(gt=0, le=1)] | None
    miss_cost: PositiveFloat | None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("sensitivity", "miss_cost") if getattr(self, name) is not None]
        if len(given) == 2 or (self.positive is not None and not given):
            raise ValueError(
                f"found {' and '.join(given) or 'positive alone'}; needed is either sensitivity "
                f"(the share to find) or "
                "miss_cost (what a miss costs, in false alarms)"
            )
        return self

    @property
    def is_requested(self) -> bool:
        """Whether one is requested."""
        return self.sensitivity is not None or self.miss_cost is not None


class Evaluate(RunRequest):
    """Config of `kd.evaluate`; see conf/evaluate.yaml."""

    data: Node
    flips: bool
    operating_point: OperatingPoint
    corruptions: Annotated[list[str], BeforeValidator(_corruptions)]
    knn: Annotated[int, Field(gt=0)] | None
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1)]
    seed: Seed
    output_dir: str

    def read_as(self, reading: Mapping[str, object]) -> dict[str, object]:
        """Return how another data set's files are read: as the run's, but for what was typed.

        Args:
            reading: the run's, as `kd.data.decode.Reading`.
        """
        return {key: value for key, value in reading.items() if f"data.{key}" not in self._typed}
