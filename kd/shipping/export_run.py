"""Writes a finished run's net in other formats, and checks each file on real images."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from kd.data.base import DataModule, Images
from kd.data.rendering import as_read
from kd.data.views import normalize, to_unit
from kd.errors import CommandError, DamagedError, UserError, WriteError
from kd.files.export_file import SCHEMA as RECORD_SCHEMA
from kd.files.export_file import ExportedFile, ExportRecord, QuantizedAccuracy
from kd.files.records import read_record
from kd.files.writing import whole
from kd.log import say, waiting
from kd.measure.metrics import decisions, summary
from kd.nets.build import normalization_of
from kd.nets.pretrained_weights import Normalization
from kd.reports.provenance import provenance
from kd.runs.reader import FinishedRun, own_data
from kd.shape import Shape
from kd.shipping.export_text import as_markdown, as_table, sentences
from kd.shipping.formats import (
    INPUT,
    OUTPUT,
    SCHEMA,
    whole_net,
    write_format,
    write_onnx,
)
from kd.shipping.model import OnnxNet
from kd.shipping.requests import FORMATS, Export
from kd.shipping.runtimes import LiteRtNet, OpenVinoNet, check_packages, versions

Ask = Callable[[Tensor], Tensor]
COMPARED = 512  # images of each part on which a float32 file is compared
ROUNDED = ("fp16", "int8")  # formats whose accuracy is shown beside float32's
HALF = 1e-2  # largest difference of a float16 file, as a share of the largest logit
RANDOM = 64  # random images, if there are no real ones


@dataclass(frozen=True)
class ExportSubject:
    """A net to export, with the images for its checks.

    Attributes:
        net: in evaluation mode, on the CPU.
        own: normalisation of the net.
        inside: whether the files include it.
        parts: images by part: `val` and `test`, or `random`.
        train: for the calibration; None if the data is missing.
    """

    net: nn.Module
    shape: Shape
    own: Normalization
    inside: bool
    metadata: Mapping[str, str]
    parts: Mapping[str, Images]
    train: Images | None

    @property
    def file_normalization(self) -> Normalization | None:
        """Normalisation inside the files."""
        return self.own if self.inside else None

    def feed(self, pixels: Tensor) -> Tensor:
        """Convert uint8 pixels [B, C, H, W] to the files' input, float32 [B, C, H, W]."""
        unit = to_unit(pixels)
        return unit if self.inside else normalize(unit, *self.own)


def export(finished: FinishedRun, config: Export, command: str) -> Path:
    """Write a run's net in each format, check it, print the outcome, and record it in `export.json`
    and `export.md`.

    Args:
        command: command line that repeats it.

    Returns:
        the file `export.json`.

    Raises:
        UserError: the run's files, its data if needed, or a package is missing.
        WriteError: such as on a full disk.
        CommandError: a file did not pass its check; the others exist.
    """
    for kind in config.formats:
        check_packages(kind, "formats")
    subject, lacking = _subject(finished, config)
    folder = finished.room(config.out, "export")
    kept = _earlier(folder / "export.json")
    rows = []
    params = sum(parameter.numel() for parameter in subject.net.parameters())
    whose = {"run": str(finished.folder), "params": params}
    for kind in config.formats:
        path = folder / f"{config.role}{FORMATS[kind]}"
        say(f"writing and checking {path.name}")
        rows.append(_make(kind, path, subject, config).model_copy(update=whose))
    with whole(folder / f"{config.role}.json") as temporary:
        temporary.write_text(_sidecar(subject))
    found = ExportRecord(
        schema_number=RECORD_SCHEMA,
        run=str(finished.folder),
        **provenance(command),
        versions=versions(),
        normalizes=config.normalize,
        checked_on={name: len(images) for name, images in subject.parts.items()},
        without_data=lacking,
        tolerance=config.tolerance,
        max_loss=config.max_loss,
        files=rows,
    )
    return _publish(found, kept, folder)


def _subject(finished: FinishedRun, config: Export) -> tuple[ExportSubject, str | None]:
    """Return what to export, and the reason if the data is missing."""
    role = config.role
    net = finished.net(role)
    shape = finished.shape_of(role)
    reads = finished.reads(role)
    own = normalization_of(net, ((0.0,), (1.0,)))
    cache = f"{config.output_dir}/cache"
    try:
        data, lacking = own_data(finished, config.data, cache, needed="int8" in config.formats)
    except UserError as error:
        raise UserError(
            f"{error}\nint8 is calibrated and tested on the run's images; formats=[onnx,pt2] do "
            f"without"
        ) from error
    about = {
        "kd_schema": SCHEMA,
        "run": finished.report.name,
        "role": role,
        "net": next(model.net for model in finished.report.models if model.role == role),
        "classes": finished.report.data.classes,
        "channels": shape.channels,
        "image_size": shape.image_size,
        "mean": list(own[0]),
        "std": list(own[1]),
        "normalizes": config.normalize,
        "multilabel": finished.report.multilabel,
        "reading": _reading(reads) or finished.report.data.reading,
    }
    metadata = {key: json.dumps(value) for key, value in about.items()}
    parts, train = _images(data, shape, reads)
    if "int8" in config.formats and "val" not in parts:
        raise UserError(
            "formats: int8 is accepted or refused by its accuracy on validation images, and "
            "data.val_fraction=0 held out none; formats=[onnx,pt2] do without"
        )
    return ExportSubject(net.cpu(), shape, own, config.normalize, metadata, parts, train), lacking


def _sidecar(subject: ExportSubject) -> str:
    """Return what a program needs to feed the files, as JSON; LiteRT's has no room for it."""
    about = {key: json.loads(value) for key, value in subject.metadata.items()}
    about |= {"input": INPUT, "output": OUTPUT, "layout": "NCHW", "dtype": "float32"}
    return json.dumps(about, indent=2) + "\n"


def _reading(reads: Mapping[str, object] | None) -> dict[str, object]:
    """Return how a net with images of its own decodes them."""
    return {name: value for name, value in (reads or {}).items() if name != "image_size"}


def _images(
    data: DataModule | None, shape: Shape, reads: Mapping[str, object] | None
) -> tuple[dict[str, Images], Images | None]:
    if data is not None:
        parts = {"val": data.split.val, "test": data.split.test}
        train = as_read(data.for_stage("transfer").training_images, reads)
        return {k: as_read(v, reads) for k, v in parts.items() if v}, train
    draw = torch.Generator().manual_seed(0)
    size = (RANDOM, *shape.pixels)
    pixels = torch.randint(0, 256, size, generator=draw, dtype=torch.uint8)
    return {"random": Images(pixels, torch.full((RANDOM,), -1))}, None


def _make(kind: str, path: Path, subject: ExportSubject, config: Export) -> ExportedFile:
    """Write one file and check it, removing a failed one; returns its entry in `export.json`."""
    try:
        _write(kind, path, subject, config.calibration)
        row = _check(kind, path, subject, config)
    except WriteError:  # such as on a full disk; an earlier file stays
        raise
    except Exception as error:  # exporters may raise anything; the other formats go on
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        refused = f"{type(error).__name__}: {reason}"
        row = ExportedFile(format=kind, role=config.role, file=path.name, refused=refused)
    if row.refused:
        for each in _parts(path):
            each.unlink(missing_ok=True)
    return row


def _parts(path: Path) -> list[Path]:
    """Return the files of a format; OpenVINO's has its weights beside it."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _write(kind: str, path: Path, subject: ExportSubject, calibration: int) -> None:
    about = (subject.net, subject.shape, subject.file_normalization)
    with tempfile.TemporaryDirectory() as folder:
        single = Path(folder) / "float.onnx"
        write_format(
            kind,
            *about,
            path,
            metadata=subject.metadata,
            source=lambda: write_onnx(*about, single, metadata=subject.metadata),
            calibration=lambda: _calibration(subject, calibration),
        )


def _calibration(subject: ExportSubject, count: int) -> Iterator[NDArray[np.float32]]:
    """Iterate over `count` evenly spread, unaugmented training images in batches."""
    assert subject.train is not None
    for index in torch.split(_spread(len(subject.train), count), 32):
        yield subject.feed(subject.train.pixels[index]).numpy()


def _spread(size: int, count: int) -> Tensor:
    """Choose at most `count` evenly spaced positions among `size`; int64."""
    return torch.linspace(0, size - 1, min(size, count)).long()


def _check(kind: str, path: Path, subject: ExportSubject, config: Export) -> ExportedFile:
    """Compare a file with PyTorch; the result says why it is refused, if it is."""
    runs = _open(kind, path)
    plain = whole_net(subject.net, subject.file_normalization)
    difference = 0.0
    largest = 0.0
    rounded: dict[str, QuantizedAccuracy] = {}
    for name, images in subject.parts.items():
        beside = kind in ROUNDED and name != "random"
        some = images if beside else images.at(_spread(len(images), COMPARED))
        ours, theirs = (_logits(each, some, subject) for each in (plain, runs))
        difference = max(
            difference,
            float((ours - theirs).abs().max()) if theirs.isfinite().all() else float("inf"),
        )
        largest = max(largest, float(ours.abs().max()))
        if beside:
            rounded[name] = _beside(ours, theirs, some.labels)
    accepted = config.tolerance if kind != "fp16" else HALF * largest
    accuracy = rounded.get("val") if kind == "int8" else None
    return ExportedFile(
        format=kind,
        role=config.role,
        file=path.name,
        bytes=sum(each.stat().st_size for each in _parts(path)),
        max_difference=difference if difference < float("inf") else None,
        refused=_reason(difference, accepted, accuracy, config.max_loss),
        val=rounded.get("val"),
        test=rounded.get("test"),
    )


def _reason(
    difference: float, accepted: float, int8: QuantizedAccuracy | None, max_loss: float
) -> str | None:
    """Say why a file is refused; None for a good one.

    Args:
        difference: largest of the logits.
        accepted: difference that is accepted of a file that is not int8.
        int8: on validation; None for other files.
        max_loss: points of accuracy that int8 may lose.
    """
    if difference == float("inf"):
        return "its logits are not all finite"
    if int8:
        lost = 100 * (int8.float32 - int8.accuracy)
        if lost > max_loss:
            return (
                f"loses {lost:.2f} points of validation accuracy, accepted are max_loss={max_loss}"
            )
    elif difference > accepted:
        return f"differs by {difference:.2g} from PyTorch, accepted is tolerance={accepted:.2g}"
    return None


def _open(kind: str, path: Path) -> Ask:
    if kind == "pt2":
        module: Ask = torch.export.load(path).module()
        return module
    kinds: dict[str, Callable[[Path], Ask]] = {"openvino": OpenVinoNet, "litert": LiteRtNet}
    return kinds.get(kind, OnnxNet)(path)


@torch.no_grad()
def _logits(ask: Ask, images: Images, subject: ExportSubject) -> Tensor:
    size = images.pixels.batch
    steps = range(0, len(images), size)
    return torch.cat(
        [
            ask(subject.feed(images.pixels[i : i + size]))
            for i in waiting(steps, f"checking on {len(images)} images")
        ]
    )


def _beside(ours: Tensor, theirs: Tensor, labels: Tensor) -> QuantizedAccuracy:
    """Compare logits [N, C] in int8 and float32."""
    found = summary(theirs, labels)
    return QuantizedAccuracy(
        images=len(labels),
        accuracy=found.accuracy,
        accuracy_ci95=found.accuracy_ci95,
        float32=summary(ours, labels).accuracy,
        same_class=float(_alike(ours, theirs, labels.ndim == 2).double().mean()),
    )


def _alike(ours: Tensor, theirs: Tensor, multilabel: bool) -> Tensor:
    """Return for which images two nets decide alike, bool [N], by their logits [N, C]."""
    same = decisions(ours, multilabel) == decisions(theirs, multilabel)
    return same.all(1) if multilabel else same


def _publish(found: ExportRecord, earlier: list[ExportedFile], folder: Path) -> Path:
    """Merge the results with those of earlier commands in the folder; write and print them.

    Raises:
        CommandError: a file was refused.
    """
    new = {row.file for row in found.files}
    kept = [row for row in earlier if row.file not in new and (folder / row.file).exists()]
    console = Console()
    console.print(as_table(found))
    for line in sentences(found):
        console.print(line, highlight=False, markup=False)
    merged = found.model_copy(update={"files": [*found.files, *kept]})
    file = folder / "export.json"
    for path, text in ((file, merged.text()), (folder / "export.md", as_markdown(merged))):
        with whole(path) as temporary:
            temporary.write_text(text)
    say(f"Written to {folder}")
    refused = [row for row in found.files if row.refused]
    if refused:
        raise CommandError(
            "\n".join(f"{row.file} is refused and removed: {row.refused}" for row in refused)
        )
    return file


def _earlier(file: Path) -> list[ExportedFile]:
    """Return the good files that earlier commands wrote.

    Raises:
        UserError: a later kd wrote the record.
    """
    try:
        record = read_record(file, ExportRecord, RECORD_SCHEMA, "export")
    except (OSError, DamagedError):
        return []
    return [row for row in record.files if not row.refused]
