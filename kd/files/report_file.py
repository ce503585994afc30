"""Reads a run's `report.json` and checks what programs rely on; the file may come from anybody."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kd.errors import DamagedError, first_of
from kd.files.records import read_record

SCHEMA = 1

# Text shown in one line, on terminals too.
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ReportPart(BaseModel):
    """Base model: further keys are allowed, and those with a default are optional."""

    model_config = ConfigDict(strict=True)


class TestMetrics(ReportPart):
    """Metrics of a model on the test part."""

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
    """Latency in milliseconds."""

    median: float | None = None
    p95: float | None = None


class ModelReport(ReportPart):
    """One of the compared models; `stage` is a folder name in the store."""

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
    """Effect of distillation."""

    gain: float | None
    gain_ci95: tuple[float, float] | None = None
    p_value: float | None = None
    gap_closed: float | None = None
    retention: float | None = None
    speedup: float | None = None
    compression: float | None = None


class TaskAccuracies(ReportPart):
    """Accuracies in task-incremental learning: on the tasks seen so far, after each task."""

    after: list[Fraction]
    final: float | None = None
    average: float | None = None
    forgetting: float | None = None
    backward_transfer: float | None = None


class IncrementalReport(ReportPart):
    """Report of a run over tasks."""

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
    """Part of a report that comparisons use."""

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
    """Part of the config that locates a run's stages and images."""

    data: dict[str, Any]
    output_dir: str


class WholeReport(Report):
    """Part of a report that opening a run uses."""

    config: Origin  # type: ignore[assignment]
    data: DataReport


def read_report(file: Path, shape: type[Report] = Report) -> dict[str, Any]:
    """Read a run's report.

    Args:
        shape: what it must hold.

    Raises:
        DamagedError: it was altered, cannot be read, or is no report.
        UserError: a later kd wrote it.
    """
    try:
        report = read_record(file, SCHEMA, "report")
        shape.model_validate_json(json.dumps(report))
    except OSError as error:
        raise DamagedError(f"{file}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise DamagedError(f"{file} is damaged, or no report of kd: {first_of(error)}") from None
    return report
