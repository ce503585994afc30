"""What `kd.export` writes beside its files: `export.json`."""

from kd.files.records import Record
from kd.files.report_file import Fraction, Interval, RunCommandRecord

SCHEMA = 1


class QuantizedAccuracy(Record):
    """A file's accuracy in int8 or float16 on some images, beside that of the net in float32.

    Attributes:
        same_class: share of the images with the same prediction.
    """

    images: int
    accuracy: Fraction
    accuracy_ci95: Interval
    float32: Fraction
    same_class: Fraction


class ExportedFile(Record):
    """A file of a net, compared with PyTorch.

    Attributes:
        run, params: the run it came from, and the parameters of its net; None in records of
            before these were kept by file.
        bytes: its size; it and `max_difference` are not there where it could not be written.
        max_difference: of the logits; None where they are not all finite.
        refused: why the file is removed; None for a good one.
        val, test: of int8 and float16 only.
    """

    format: str
    role: str
    file: str
    run: str | None = None
    params: int | None = None
    bytes: int | None = None
    max_difference: float | None = None
    refused: str | None
    val: QuantizedAccuracy | None = None
    test: QuantizedAccuracy | None = None


class ExportRecord(RunCommandRecord):
    """What `export.json` holds.

    Attributes:
        versions: of the packages that write and run the files.
        normalizes: whether the files take pixels in [0, 1].
        checked_on: number of images by part.
        without_data: why the run's images are not there; None if they are.
        tolerance: largest difference of logits accepted in float32.
        max_loss: points of validation accuracy that int8 may lose.
    """

    versions: dict[str, str]
    normalizes: bool
    checked_on: dict[str, int]
    without_data: str | None
    tolerance: float
    max_loss: float
    files: list[ExportedFile]
