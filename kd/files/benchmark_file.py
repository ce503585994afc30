"""What `kd.benchmark` writes: `benchmark.json`."""

from kd.files.records import Record
from kd.files.report_file import RunCommandRecord
from kd.shape import ImageSize

SCHEMA = 1


class TimingPlace(Record):
    """Where a forward pass is timed: the device, the backend, and the images at once."""

    device: str
    backend: str
    batch: int

    @property
    def place(self) -> tuple[str, str, int]:
        """The three as a key."""
        return self.device, self.backend, self.batch


class TimingRow(TimingPlace):
    """Median and 95th percentile of a forward pass in milliseconds, of so many passes."""

    median: float
    p95: float
    images_per_second: float
    passes: int


class TimingRatio(TimingPlace):
    """The teacher's median divided by the model's."""

    ratio: float


class UnavailablePass(TimingPlace):
    """A pass that could not be timed, and why."""

    role: str
    reason: str


class CostRatios(Record):
    """The teacher's costs divided by the model's; `latency` where both have one."""

    params: float
    macs: float
    bytes: float
    peak_activation_bytes: dict[str, dict[str, float]]
    latency: list[TimingRatio]


class ModelCosts(Record):
    """What a net costs.

    Attributes:
        stage: key in the store.
        onnx_bytes, onnx_int8_bytes: None where no such file was asked for or could be made.
        peak_activation_bytes: by device and batch.
        to_teacher: None without a teacher.
    """

    role: str
    net: str
    stage: str
    params: int
    macs: int
    bytes: int
    onnx_bytes: int | None
    onnx_int8_bytes: int | None
    peak_activation_bytes: dict[str, dict[str, int]]
    latency: list[TimingRow]
    to_teacher: CostRatios | None = None


class BenchmarkRecord(RunCommandRecord):
    """What `benchmark.json` holds.

    Attributes:
        shape: channels, image size, number of classes.
        seconds: time for each row, in so many rounds of turns.
        missing: why a net is not there, by role.
        unavailable: backends that could not run.
    """

    name: str
    shape: tuple[int, ImageSize, int]
    seconds: float
    rounds: int
    missing: dict[str, str]
    models: list[ModelCosts]
    unavailable: list[UnavailablePass]

    @property
    def roles(self) -> list[str]:
        """The roles of its nets."""
        return [model.role for model in self.models]
