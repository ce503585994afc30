"""A run's `report.json`, read back and checked for what programs count on; the file may be anybody's."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kd.errors import Damaged, first_of
from kd.files.records import read_record

SCHEMA = 1

# What is shown in a line, on terminals too.
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ReportPart(BaseModel):
    """Other keys may stand beside these, and those with a default may be missing."""

    model_config = ConfigDict(strict=True)


class TestMetrics(ReportPart):
    """What a model does on the test part."""

    accuracy: Fraction
    accuracy_ci95: tuple[float, float] | None = None
    balanced_accuracy: float | None = None
    auroc: float | None = None
    nll: float | None = None
    ece: float | None = None
    agreement: float | None = None


class ValidationAccuracy(ReportPart):
    """Accuracy on the validation part."""

    best: float | None = None
    last: float | None = None


class LatencyReport(ReportPart):
    """In milliseconds."""

    median: float | None = None
    p95: float | None = None


class ModelReport(ReportPart):
    """One of the models side by side; `stage` is the name of a folder in the store."""

    role: Line
    stage: Annotated[str, Field(pattern=r"^[\w.-]*\w$")]
    test: TestMetrics
    net: Line = ""
    val: ValidationAccuracy | None = None
    latency_ms: LatencyReport | None = None
    params: float | None = None
    macs: float | None = None
    bytes: float | None = None
    training_params: float | None = None
    step_ms: float | None = None
    history: dict[str, list[float | None]] | None = None


class Comparison(ReportPart):
    """What distillation bought."""

    gain: float | None
    gain_ci95: tuple[float, float] | None = None
    p_value: float | None = None
    gap_closed: float | None = None
    retention: float | None = None
    speedup: float | None = None
    compression: float | None = None


class TaskAccuracies(ReportPart):
    """What is known of tasks that were learned one after another: on those seen so far, after each."""

    after: list[Fraction]
    final: float | None = None
    average: float | None = None
    forgetting: float | None = None
    backward_transfer: float | None = None


class IncrementalReport(ReportPart):
    """A run over tasks."""

    method: Line
    tasks: Annotated[list[Any], Field(min_length=1)]
    class_incremental: TaskAccuracies
    task_incremental: TaskAccuracies

    @model_validator(mode="after")
    def _of_each(self) -> Self:
        if any(
            len(each.after) != len(self.tasks)
            for each in (self.class_incremental, self.task_incremental)
        ):
            raise ValueError("`after` has other tasks than `tasks`")
        return self


class DataReport(ReportPart):
    """The images."""

    name: Line = ""
    classes: list[Line]


class Report(ReportPart):
    """A report that runs are compared by."""

    name: Line
    seed: int
    finished: str
    config: dict[str, Any]
    comparison: Comparison
    models: Annotated[list[ModelReport], Field(min_length=1)]
    data: DataReport | None = None
    environment: dict[str, Any] | None = None
    incremental: IncrementalReport | None = None


class Origin(ReportPart):
    """Of a config what a run's stages and images are found by."""

    data: dict[str, Any]
    output_dir: str


class WholeReport(Report):
    """A report that a run is opened by."""

    config: Origin  # type: ignore[assignment]
    data: DataReport


def read_report(file: Path, shape: type[Report] = Report) -> dict[str, Any]:
    """What a run's report says.

    Args:
        shape: what it must hold.

    Raises:
        Damaged: it is not as it was written, cannot be read, or is nobody's report.
        UserError: a later kd wrote it.
    """
    try:
        report = read_record(file, SCHEMA, "report")
        shape.model_validate_json(json.dumps(report))
    except OSError as error:
        raise Damaged(f"{file}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise Damaged(f"{file} is damaged, or no report of kd: {first_of(error)}") from None
    return report
