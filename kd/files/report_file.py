"""A run's `report.json`: what it holds, and reading it back. The file may be anybody's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from kd.errors import DamagedError
from kd.files.records import Record, read_record

SCHEMA = 1

# Text shown in one line, on terminals too.
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]  # of 95 %
Columns = dict[str, list[int | float | None]]  # by metric, a value for each epoch


class ReliabilityBin(Record):
    """Images by how sure a net is: their number, mean confidence and accuracy; None of no image."""

    count: int
    confidence: float | None
    accuracy: float | None


class ClassCount(Record):
    """Of a class, by its place in the list of classes, the images and how many are right."""

    label: int
    images: int
    right: int


class ConfusedPair(Record):
    """How many images of the class `label` are taken for the class `chosen`."""

    label: int
    chosen: int
    images: int


class ProbabilityMetrics(Record):
    """How far a net's probabilities can be trusted; see `kd.measure.metrics`."""

    nll: float
    brier: float
    ece: float
    reliability: list[ReliabilityBin]


class Metrics(Record):
    """How good a net is on some images; see `kd.measure.metrics.summary`.

    What has a default may be missing in older reports. `map` and the F1 are of multi-label data.
    """

    accuracy: Fraction
    accuracy_ci95: Interval
    balanced_accuracy: float | None = None
    nll: float
    brier: float | None = None
    ece: float
    agreement: float | None = None
    auroc: float | None = None
    sensitivity: float | None = None
    specificity: float | None = None
    map: float | None = None
    f1_macro: float | None = None
    f1_micro: float | None = None
    confusion: list[list[int]] | None = None
    worst_classes: list[ClassCount] | None = None
    confused_pairs: list[ConfusedPair] | None = None
    reliability: list[ReliabilityBin] = []


class EpochAccuracies(Record):
    """Accuracy of the epoch that was best on validation, and of the last; None of no such epoch."""

    best: float | None = None
    last: float | None = None

    def of(self, epoch: str) -> float | None:
        """That of the `best` or the `last` epoch."""
        return {"best": self.best, "last": self.last}[epoch]


class Latency(Record):
    """Time of a forward pass in milliseconds."""

    batch: int
    median: float
    p95: float


class ModelReport(Record):
    """One of the models side by side.

    Attributes:
        test: of the weights that the run keeps.
        test_by_epoch: on test, of both epochs; empty in older reports.
        stage: the name of a folder in the store.
        step_ms: time of an optimiser step in milliseconds; None where nothing was trained.
        precision: the number format of the training.
        devices: how many trained together.
        batch_size_per_device: images of a step that each of them saw; None where nothing was
            trained.
    """

    role: Line
    net: Line
    params: int
    macs: int
    bytes: int
    latency_ms: Latency
    test: Metrics
    test_by_epoch: EpochAccuracies = EpochAccuracies()
    val: EpochAccuracies
    stage: Annotated[str, Field(pattern=r"^[\w.-]*\w$")]
    training_params: int = 0
    step_ms: float | None = None
    precision: str | None = None
    devices: int = 1
    batch_size_per_device: int | None = None
    epochs: int
    seconds: float
    history: Columns = {}


class Comparison(Record):
    """What distillation bought; see `kd.reports.run_report.compare`."""

    gain: float | None
    gain_ci95: Interval | None = None
    p_value: float | None = None
    lead: float | None = None
    lead_ci95: Interval | None = None
    gap_closed: float | None = None
    retention: float | None = None
    speedup: float | None = None
    compression: float | None = None


class TaskAccuracies(Record):
    """What is known of tasks that were learned in turn; see `kd.tasks.forgetting.evaluation`."""

    matrix: list[list[Fraction]] = []
    after: list[Fraction]
    average: float | None = None
    final: float | None = None
    forgetting: float | None = None
    backward_transfer: float | None = None

    def measure(self, name: str) -> float | None:
        """One of the four numbers, by its name."""
        numbers = {"average": self.average, "final": self.final, "forgetting": self.forgetting}
        return {**numbers, "backward_transfer": self.backward_transfer}[name]


class TaskEvaluation(Record):
    """The same net, asked among all classes seen and among those of the image's task."""

    class_incremental: TaskAccuracies
    task_incremental: TaskAccuracies


class IncrementalReport(Record):
    """A run over tasks.

    Attributes:
        tasks: the classes of each, by name.
        exemplars: how many images were kept after each task.
        stages: the keys of the tasks' stages.
    """

    method: Line
    tasks: Annotated[list[list[str]], Field(min_length=1)]
    classifier: str = "logits"
    exemplars: list[int] = []
    stages: list[str] = []
    seconds: list[float] = []
    class_incremental: TaskAccuracies
    task_incremental: TaskAccuracies
    validation: TaskEvaluation | None = None

    def by(self, evaluation: str) -> TaskAccuracies:
        """The accuracies of `class_incremental` or `task_incremental`."""
        kinds = {"class_incremental": self.class_incremental}
        return {**kinds, "task_incremental": self.task_incremental}[evaluation]

    @model_validator(mode="after")
    def _of_each(self) -> Self:
        if any(
            len(each.after) != len(self.tasks)
            for each in (self.class_incremental, self.task_incremental)
        ):
            raise ValueError("`after` has other tasks than `tasks`")
        return self


class SkippedFile(Record):
    """An image file that could not be decoded, and why."""

    file: str
    reason: str


class DuplicateCounts(Record):
    """Images that are there more than once; see `kd.data.duplicates.Duplicates`."""

    within: dict[str, int] = {}
    across: dict[str, int] = {}
    contradicting: int = 0
    examples: list[str] = []
    dropped: dict[str, int] = {}


class TeacherImages(Record):
    """Images of another source that the teacher learned from and was chosen on."""

    name: str
    train: int
    val: int


class DataReport(Record):
    """The images.

    Attributes:
        train, val, test: number of images; `labels` and `val_labels` are how many of them had a
            label for the student and the baseline. None in older reports, which had all.
        omitted: classes that student and baseline were not shown.
        teacher: None where it learned from the same source.
        reading: how a file becomes pixels.
    """

    name: Line
    classes: list[Line]
    train: int
    val: int
    test: int
    labels: int | None = None
    omitted: list[str] = []
    val_labels: int | None = None
    unlabeled: int = 0
    teacher: TeacherImages | None = None
    skipped: list[SkippedFile] = []
    reading: dict[str, object] = {}
    notes: list[str] = []
    duplicates: DuplicateCounts = DuplicateCounts()
    license: str | None = None


class Environment(Record):
    """What the numbers were measured with; `cpu` is told where `device` may be a GPU."""

    python: str
    torch: str
    lightning: str
    device: str
    threads: int
    cpu: str = ""


class RunCommandRecord(Record):
    """What `kd.evaluate`, `kd.benchmark` and `kd.export` say of the making of their files.

    Attributes:
        run: folder of the run.
        finished: ISO time.
        git: the commit; None outside a checkout.
        command: the line that repeats it.
    """

    schema_number: int = Field(alias="schema")
    run: str
    finished: str
    git: str | None
    command: str
    environment: Environment


class OmittedCounts(Record):
    """A number of test images: of all classes, and of those that were never shown."""

    all: int
    omitted: int


class OmittedErrors(Record):
    """Errors of a net on classes that it was never shown; see `kd.measure.omission`."""

    images: OmittedCounts
    errors: OmittedCounts
    bias: float
    errors_corrected: OmittedCounts


class SoftLabels(Record):
    """What the teacher's soft labels were worth; see `kd.teachers.diagnosis`."""

    accuracy: float
    entropy: float
    label_probability: float
    instability: float
    concerns: list[str] = []


class DoubtedLabel(Record):
    """A training image that the teacher puts into another class than its label.

    Attributes:
        place: position in the training part, from 0.
        label, chosen: classes, by place in the list of classes.
        present: of multi-label data, whether the image has the label; `chosen` is then the same
            class, and the teacher says the opposite.
    """

    place: int
    name: str
    label: int
    chosen: int
    present: bool | None = None
    label_probability: float
    chosen_probability: float


class LabelDoubts(Record):
    """Labels that the teacher doubts, the most certain doubt first; see `kd.reports.label_doubts`.

    Attributes:
        asked: number of training images that it was asked about.
    """

    asked: int
    most: list[DoubtedLabel] = []


class Origin(Record):
    """Of a run's config what its stages and images are found by."""

    data: dict[str, object]
    output_dir: str


class Report(Record):
    """What `report.json` holds.

    Attributes:
        finished: ISO time.
        git: the commit; None outside a checkout.
        command: the line that repeats the run.
        config: all of it, checked, plain values only.
        omitted: by role; None where all classes were shown.
        teaching: None where nothing was distilled.
        doubts: None without a teacher, or without pictures.
        incremental: None but for a run over tasks.
    """

    schema_number: int = Field(default=SCHEMA, alias="schema")
    name: Line
    seed: int
    finished: str
    git: str | None = None
    command: str
    environment: Environment
    config: dict[str, object]
    data: DataReport
    models: list[ModelReport]
    comparison: Comparison
    omitted: dict[str, OmittedErrors] | None = None
    teaching: SoftLabels | None = None
    doubts: LabelDoubts | None = None
    warnings: list[str] = []
    incremental: IncrementalReport | None = None

    def model(self, role: str) -> ModelReport | None:
        """The model of a role; None where the run has none."""
        return next((model for model in self.models if model.role == role), None)

    @property
    def student(self) -> ModelReport:
        """The student; the last model where there is none."""
        return self.model("student") or self.models[-1]

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels, or none."""
        return any(model.test.f1_micro is not None for model in self.models)

    @property
    def origin(self) -> Origin:
        """Where its stages and images are."""
        return Origin.model_validate(self.config)

    @property
    def trainer(self) -> Mapping[str, object]:
        """The options of Lightning's Trainer that its config has."""
        found = self.config.get("trainer")
        return found if isinstance(found, dict) else {}


def read_report(file: Path) -> Report:
    """What a run's report says.

    Raises:
        DamagedError: it cannot be read, is no report, or has no model.
        UserError: a later kd wrote it.
    """
    try:
        report = read_record(file, Report, SCHEMA, "report")
    except OSError as error:
        raise DamagedError(f"{file}: cannot be read: {error.strerror}") from error
    if not report.models:  # a run whose stages have no role
        raise DamagedError(f"{file}: models: found none, so there is nothing to compare")
    return report
