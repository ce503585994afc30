"""A finished stage's `stage.json`: what it was made of, and what came of it."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field

from kd.files.records import Record
from kd.shape import ImageSize

SCHEMA = 1
EpochMetrics = dict[str, int | float]  # by name, such as `val/acc`


class ChannelStatistics(Record):
    """Mean and standard deviation per channel, for pixels in [0, 1]."""

    mean: list[float]
    std: list[float]


class ChosenOutputs(Record):
    """Of a weights file's `of` outputs, those that stand for the data's classes, in their order."""

    taken: list[int]
    of: int


class StageSpec(Record):
    """Everything that a stage's result depends on, and nothing else. Its key is a hash of this.

    What is not set is not in the key. `epochs` to `keep` are the recipe; see
    `kd.config.schema.Recipe`.

    Attributes:
        recipe: version of the training code.
        shape: channels, image size, number of classes.
        reads: how the net reads images, where not as the data does: `image_size`, and the
            attributes of `kd.data.decode.Reading`.
        data: hashes of the images and labels, and how they are shown.
        net: node of the net; `pretrained` names the weights that come with it.
        weights: checksum of the file with the initial weights; `state` is which of its state dicts.
        normalization: of the net in that file, where the config says it.
        match: `order` where its tensors are paired in order, whatever their names.
        trains: part of the net that is trained, `head`, `frozen_norms` (all but batch norms) or
            `loss`; None for all of it.
        members: keys of the stages that form an ensemble.
        objective: node of the loss.
        batch_size_per_device: images that each of several devices sees, where that matters.
        trainer: options that change the result.
        code: hashes of the modules outside kd, by name.
        teacher, start: keys of the stages that teach and that it starts from.
        outputs, answered_in: the number format of the teacher's outputs, stored and computed.
        top_k: how many of the teacher's logits are kept; None for all.
        features: number format of the teacher's features, where they may be stored.
        taps: hooked layers of `student` and `teacher`.
        align: scale the new classes' weights afterwards (new classes in tasks).
        stored: the teacher's logits are replayed (new classes in tasks).
    """

    # Set step by step; keys of another kd stay, as they are part of the hash
    model_config = ConfigDict(frozen=False, extra="allow")

    recipe: int
    shape: tuple[int, ImageSize, int]
    reads: dict[str, Any] | None = None
    data: dict[str, object]
    net: dict[str, object]
    pretrained: list[str] = []
    weights: str | None = None
    state: str | None = None
    match: str | None = None
    outputs_of_file: ChosenOutputs | None = None
    normalization: ChannelStatistics | None = None
    trains: str | None = None
    members: list[str] = []
    epochs: int = 0
    seed: int = 0
    batch_size: int = 0
    batch_size_per_device: int | None = None
    drop_last: bool = True
    optim: dict[str, object] = {}
    lr_schedule: str | dict[str, object] = ""
    gradient_clip: int | float | None = None
    label_smoothing: int | float = 0.0
    ema: int | float | None = None
    swa: int | float | None = None
    early_stopping: int | None = None
    keep: str = "best"
    objective: dict[str, object] = {}
    trainer: dict[str, object] = {}
    code: dict[str, str] = {}
    teacher: str | None = None
    start: str | None = None
    outputs: Literal["float16", "float32"] = "float32"
    answered_in: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    top_k: int | None = None
    features: Literal["float16"] | None = None
    fake_quantize: bool = False
    taps: dict[str, list[str]] = {}
    align: bool = False
    stored: bool = False


class BestAndLast(Record):
    """Metrics of the epoch that was best on validation, and of the last one; the same without a
    validation part.
    """

    best: EpochMetrics
    last: EpochMetrics

    def accuracy(self, epoch: str) -> float | None:
        """Validation accuracy of the `best` or the `last` epoch, a fraction; None of no images."""
        found = {"best": self.best, "last": self.last}[epoch].get("val/acc")
        return None if found is None else float(found)


class TrainingTotal(Record):
    """Epochs and seconds, those of the stage that it started from included."""

    epochs: int
    seconds: float


@dataclass(frozen=True)
class TrainingOutcome:
    """What came of one training.

    Attributes:
        history: one row of metrics per epoch.
        training_params: number of parameters used only in training.
    """

    history: list[EpochMetrics]
    val: BestAndLast
    epochs: int
    steps: int
    seconds: float
    training_params: int


class StageRecord(Record):
    """What `stage.json` holds.

    Attributes:
        name: as in `stages=`.
        finished: ISO time.
        history: one row of metrics per epoch.
        steps, training_params: see `TrainingOutcome`; 0 in older records.
        devices: how many trained together; no part of the key.
        reference: key of the stage that `val/agreement` compares with.
        taught: last value of its teacher's soft labels; empty without a teacher.
        loaded: whether the net was trained elsewhere, on unknown images.
        normalization: mean and standard deviation per channel.
        sha256: checksum of the weights.
    """

    schema_number: int = Field(default=SCHEMA, alias="schema")
    key: str
    name: str
    spec: StageSpec
    finished: str
    history: list[EpochMetrics]
    val: BestAndLast
    epochs: int
    steps: int = 0
    seconds: float
    training_params: int = 0
    devices: int = 1
    reference: str | None = None
    total: TrainingTotal
    taught: dict[str, float] = {}
    loaded: bool = False
    normalization: tuple[list[float], list[float]]
    sha256: str
