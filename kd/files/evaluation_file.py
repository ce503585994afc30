"""What `kd.evaluate` writes: `evaluation.json`."""

from kd.files.records import Record
from kd.files.report_file import (
    Fraction,
    Interval,
    Metrics,
    ProbabilityMetrics,
    RunCommandRecord,
    SkippedFile,
)

SCHEMA = 1


class ClassMetrics(Record):
    """Of one class: its images, precision (None if never predicted), recall (None of no image)."""

    support: int
    precision: float | None
    recall: float | None


class EvaluatedMetrics(Metrics):
    """All metrics of a net.

    Attributes:
        kl: mean divergence KL(teacher || model) in nats; None without a teacher.
    """

    kl: float | None
    per_class: list[ClassMetrics]


class CalibratedMetrics(ProbabilityMetrics):
    """The metrics that temperature scaling changes, after it; the temperature is above 0."""

    temperature: float


class FlipMetrics(Record):
    """Metrics of the mean logits of each image and its mirror image."""

    accuracy: Fraction
    accuracy_ci95: Interval
    nll: float


class ThresholdMetrics(Record):
    """What a threshold does to some images: counts, and fractions with 95 % intervals (Wilson).

    A fraction of nothing is None.

    Attributes:
        found, missed: positives.
        false_alarms, cleared: negatives.
        sensitivity: positives found; `specificity` is negatives cleared.
        precision: alarms that are right; `negative_precision` is cleared that are right.
    """

    found: int
    missed: int
    false_alarms: int
    cleared: int
    sensitivity: Fraction | None
    sensitivity_ci95: Interval | None
    specificity: Fraction | None
    specificity_ci95: Interval | None
    precision: Fraction | None
    precision_ci95: Interval | None
    negative_precision: Fraction | None
    negative_precision_ci95: Interval | None


class ModelThreshold(Record):
    """A net's threshold, a probability, and its results on validation and on these images."""

    threshold: float
    validation: ThresholdMetrics
    test: ThresholdMetrics


class TunedLabels(Record):
    """Each class's threshold of highest F1 on validation, and the F1 of all that on these images.

    Attributes:
        per_class: None for a class without validation images; its threshold is 1/2.
    """

    per_class: list[ModelThreshold | None]
    f1_macro: float | None
    f1_macro_ci95: Interval | None
    f1_micro: float
    f1_micro_ci95: Interval | None


class LabelMetrics(Record):
    """Of multi-label data, beside the net's other metrics.

    Attributes:
        map_ci95, f1_macro_ci95, f1_micro_ci95: bootstrap over the images, at thresholds of 1/2.
        average_precision: by class; None without images that have the label and others.
        tuned: None without validation images.
    """

    map_ci95: Interval | None
    f1_macro_ci95: Interval | None
    f1_micro_ci95: Interval | None
    average_precision: list[float | None]
    tuned: TunedLabels | None


class EvaluatedModel(Record):
    """One of the nets.

    Attributes:
        stage: key in the store.
        calibrated: None without validation images, or where no temperature fits.
        flipped: None unless asked for.
        labels: None but for multi-label data.
    """

    role: str
    net: str
    params: int
    stage: str
    test: EvaluatedMetrics
    calibrated: CalibratedMetrics | None
    flipped: FlipMetrics | None
    labels: LabelMetrics | None = None


class PairedDifference(Record):
    """Two nets on the same images, by role.

    Attributes:
        difference: in accuracy, first - second; its interval and p as of
            `kd.measure.metrics.paired_comparison`.
        only_first, only_second: images that only one gets right, on which McNemar's test rests.
        map_difference: of multi-label data, in mAP.
    """

    first: str
    second: str
    difference: float
    difference_ci95: Interval
    p_value: float
    only_first: int
    only_second: int
    map_difference: float | None = None
    map_difference_ci95: Interval | None = None


class EvaluatedImages(Record):
    """The evaluation set; see `kd.evaluation.evaluation_set.EvaluationSet`.

    Attributes:
        omitted: classes that student and baseline were not shown.
    """

    name: str
    root: str
    part: str
    other: bool
    left_out: int
    skipped: list[SkippedFile]
    images: int
    fingerprint: str
    classes: list[str]
    omitted: list[str] = []


class CalibrationImages(Record):
    """How many validation images temperatures and thresholds were chosen on, or why on none."""

    validation: int
    reason: str | None


class RequestedThreshold(Record):
    """The share of positives to find, or the cost of a miss in false alarms."""

    sensitivity: float | None
    miss_cost: float | None


class OperatingPoints(Record):
    """The threshold of each net, by role, for the class `positive`."""

    positive: str
    asked: RequestedThreshold
    models: dict[str, ModelThreshold]


class CorruptionAccuracies(Record):
    """Accuracy by role, corruption and severity (1 to 5); and the mean over both by role."""

    severities: list[int]
    seed: int
    accuracy: dict[str, dict[str, dict[str, float]]]
    mean: dict[str, float]


class NeighbourAccuracies(Record):
    """Accuracy by role of the k nearest of the labelled training images; see `kd.measure.knn`."""

    k: int
    images: int
    accuracy: dict[str, float]


class EvaluationRecord(RunCommandRecord):
    """What `evaluation.json` holds.

    Attributes:
        trial: whether the run saw a few batches only.
        missing: why a net is not there, by role.
        operating_point, corruptions, knn: None unless asked for.
    """

    name: str
    data: EvaluatedImages
    missing: dict[str, str]
    calibrated_on: CalibrationImages
    models: list[EvaluatedModel]
    paired: list[PairedDifference]
    operating_point: OperatingPoints | None = None
    corruptions: CorruptionAccuracies | None = None
    knn: NeighbourAccuracies | None = None
    trial: bool = False

    @property
    def roles(self) -> list[str]:
        """The roles of its nets."""
        return [model.role for model in self.models]
