"""Costs of a finished run's nets, compared on this machine."""

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import nn

from kd.evaluation.backends import NetRunner, Pass, UnavailableError
from kd.evaluation.cost_figure import figure_of
from kd.evaluation.cost_text import as_markdown, sentences, tables
from kd.evaluation.requests import Benchmark
from kd.evaluation.timing import ROUNDS, median_and_p95, times
from kd.files.benchmark_file import (
    SCHEMA,
    BenchmarkRecord,
    CostRatios,
    ModelCosts,
    TimingRatio,
    TimingRow,
    UnavailablePass,
)
from kd.files.writing import whole
from kd.log import waiting
from kd.measure.costs import count_macs, peak_activations, size_of
from kd.reports.figures import settle
from kd.reports.provenance import cpu_name, provenance
from kd.runs.reader import FinishedRun
from kd.shape import Shape


class Measurement(NamedTuple):
    """Key of one latency."""

    device: str
    backend: str
    batch: int
    role: str


@dataclass(frozen=True)
class TimingPlan:
    """Passes to time, reasons for missing ones, and bytes of the ONNX files by role and backend."""

    passes: dict[Measurement, Pass]
    unavailable: list[UnavailablePass]
    files: dict[str, dict[str, int]]


def benchmark(finished: FinishedRun, config: Benchmark, command: str) -> Path:
    """Measure a run's nets; print and write the results, `benchmark.json`, `.md`, `.png`, `.svg`.

    Args:
        command: command line that repeats it.

    Returns:
        the file `benchmark.json`.

    Raises:
        UserError: the run's files are missing, or nothing can be written.
    """
    folder = finished.room(config.out)
    nets, missing = finished.nets()
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    try:
        models, unavailable = measure(nets, finished, config)
        origin = provenance(command)
        found = BenchmarkRecord(
            schema_number=SCHEMA,
            run=str(finished.folder),
            finished=origin["finished"],
            git=origin["git"],
            command=command,
            environment=origin["environment"].model_copy(update={"cpu": cpu_name()}),
            name=finished.report.name,
            shape=(*finished.shape,),
            seconds=config.seconds,
            rounds=ROUNDS,
            missing=missing,
            models=models,
            unavailable=unavailable,
        )
    finally:
        torch.set_num_threads(before)
    return _publish(found, folder)


def measure(
    nets: Mapping[str, nn.Module], finished: FinishedRun, config: Benchmark
) -> tuple[list[ModelCosts], list[UnavailablePass]]:
    """Measure costs and latencies of each net, and the ratios to the teacher's.

    Returns:
        what each net costs, and the backends that could not run.
    """
    shapes = {role: finished.shape_of(role) for role in nets}
    known = {model.role: model for model in finished.report.models}
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(nets, shapes, config, devices, Path(scratch))
        measured = times(prepared.passes, config.seconds)
    models = []
    for role, net in nets.items():
        peaks = {
            device: {str(batch): peak(net, shapes[role], batch, device) for batch in config.batches}
            for device in devices
        }
        models.append(
            ModelCosts(
                role=role,
                net=known[role].net,
                stage=known[role].stage,
                params=size_of(net).params,
                macs=count_macs(net, shapes[role]),
                bytes=size_of(net).bytes,
                onnx_bytes=prepared.files[role].get("onnx"),
                onnx_int8_bytes=prepared.files[role].get("onnx_int8"),
                peak_activation_bytes=peaks,
                latency=[row(cell, each) for cell, each in measured.items() if cell.role == role],
            )
        )
    if teacher := next((model for model in models if model.role == "teacher"), None):
        models = [each.model_copy(update={"to_teacher": ratios(each, teacher)}) for each in models]
    return models, prepared.unavailable


def prepare(
    nets: Mapping[str, nn.Module],
    shapes: Mapping[str, Shape],
    config: Benchmark,
    devices: Sequence[str],
    scratch: Path,
) -> TimingPlan:
    """Prepare every net for every backend; compiling takes tens of seconds."""
    passes = dict[Measurement, Pass]()
    unavailable = list[UnavailablePass]()
    subjects = {}
    for role, net in nets.items():
        (scratch / role).mkdir()
        subjects[role] = NetRunner(net, shapes[role], scratch / role, torch.get_num_threads())
    cells = [
        Measurement(*each)
        for each in itertools.product(devices, config.backends, config.batches, nets)
    ]
    for cell in waiting(cells, "compiling and exporting"):
        try:
            passes[cell] = subjects[cell.role].runs(cell.backend, cell.device, cell.batch)
        except UnavailableError as error:
            unavailable.append(UnavailablePass(**cell._asdict(), reason=str(error)))
    files = {
        role: {file.stem: file.stat().st_size for file in sorted((scratch / role).glob("*.onnx"))}
        for role in nets
    }
    return TimingPlan(passes, unavailable, files)


def peak(net: nn.Module, shape: Shape, batch: int, device: str) -> int:
    """Measure the peak bytes of a forward pass beyond weights and images.

    On a GPU from its allocator, scratch memory included; on the CPU see `peak_activations`.
    """
    if device == "cpu":
        return peak_activations(net, shape, batch)
    net = net.to(device).eval()
    x = torch.zeros(batch, *shape.pixels, device=device)
    with torch.inference_mode():
        net(x)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        net(x)
        torch.cuda.synchronize()
    found = torch.cuda.max_memory_allocated() - before
    net.cpu()
    return int(found)


def row(cell: Measurement, milliseconds: list[float]) -> TimingRow:
    """Make the row of a latency."""
    median, p95 = median_and_p95(milliseconds)
    return TimingRow(
        device=cell.device,
        backend=cell.backend,
        batch=cell.batch,
        median=median,
        p95=p95,
        images_per_second=1000 * cell.batch / median,
        passes=len(milliseconds),
    )


def ratios(model: ModelCosts, teacher: ModelCosts) -> CostRatios:
    """Compute the teacher's costs divided by the model's."""
    peaks = teacher.peak_activation_bytes
    medians = {each.place: each.median for each in teacher.latency}
    return CostRatios(
        params=teacher.params / max(model.params, 1),
        macs=teacher.macs / max(model.macs, 1),
        bytes=teacher.bytes / max(model.bytes, 1),
        peak_activation_bytes={
            device: {batch: peaks[device][batch] / max(size, 1) for batch, size in each.items()}
            for device, each in model.peak_activation_bytes.items()
        },
        latency=[
            TimingRatio(
                device=each.device,
                backend=each.backend,
                batch=each.batch,
                ratio=medians[each.place] / each.median,
            )
            for each in model.latency
            if each.place in medians
        ],
    )


def _publish(found: BenchmarkRecord, folder: Path) -> Path:
    file = folder / "benchmark.json"
    for path, text in ((file, found.text()), (file.with_suffix(".md"), as_markdown(found))):
        with whole(path) as temporary:
            temporary.write_text(text + "\n")
    figure = figure_of(found)
    settle(figure)
    for kind in ("png", "svg"):
        with whole(file.with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=150)
    console = Console()
    for table in tables(found):
        console.print(table)
    for line in sentences(found):
        console.print(line, highlight=False, markup=False)
    written = file.with_suffix(".md")
    console.print(
        f"Written: {written}, with benchmark.png", highlight=False, markup=False, soft_wrap=True
    )
    return file
