"""`kd.benchmark`: counts by hand, turns, and missing backends. No speed is asserted."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from composed import composed_command
from torch import nn

from kd.evaluation.backends import NetRunner, UnavailableError
from kd.evaluation.cost_figure import figure_of
from kd.evaluation.cost_text import latency_rows, sentences
from kd.evaluation.costs_of_run import Measurement, benchmark, ratios, row
from kd.evaluation.requests import Benchmark
from kd.evaluation.timing import LEAST, ROUNDS, median_and_p95, times
from kd.files.benchmark_file import BenchmarkRecord, ModelCosts, UnavailablePass
from kd.files.report_file import Environment
from kd.measure.costs import peak_activations
from kd.nets.mlp import MLP
from kd.run_commands import command_of, read_request
from kd.runs.reader import open_run
from kd.shape import Shape

SHAPE = Shape(1, 8, 10)


def config(run: Path, *overrides: str) -> Benchmark:
    return read_request(
        command_of("benchmark"),
        composed_command("benchmark", f"run={run}", "seconds=0.01", *overrides),
        set(),
    )


class Residual(nn.Module):
    """A block whose input is needed until its end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.expand(-1, 4, -1, -1).contiguous()  # a copy, held until the sum
        return torch.relu_(self.second(torch.relu(self.first(x)))).add(x)


@pytest.mark.parametrize(
    ("net", "floats"),
    [
        # Two layers' outputs at once; a flattened image is a view.
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 10)), 80 + 80),
        (
            nn.Sequential(
                nn.Flatten(), nn.Linear(64, 80), nn.ReLU(inplace=True), nn.Linear(80, 10)
            ),
            80 + 10,
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 200), nn.Linear(200, 300)),
            200 + 300,
        ),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten()),
            4 * 64 + 4 * 64,
        ),
        # The copy, the first layer's output and ReLU's output.
        (Residual(), 3 * 4 * 64),
    ],
    ids=["relu", "in place", "widest pair", "batch norm", "residual"],
)
@pytest.mark.parametrize("batch", [1, 64])
def test_peak_activations_by_hand(net: nn.Module, floats: int, batch: int) -> None:
    assert peak_activations(net, SHAPE, batch) == 4 * floats * batch
    # Nothing is left from the first time
    assert peak_activations(net, SHAPE, batch) == 4 * floats * batch


def test_all_take_turns() -> None:
    said: list[str] = []
    found = times({name: lambda name=name: said.append(name) for name in "abc"}, seconds=1e-6)
    turns = [name for i, name in enumerate(said) if i == 0 or said[i - 1] != name]
    rounds = [set(turns[i : i + 3]) for i in range(0, 3 * (len(turns) // 3), 3)]
    # Where a round ends with the first of the next, two turns look like one.
    assert 2 * ROUNDS < len(turns) <= 3 * ROUNDS
    assert rounds[0] == set("abc")
    # Not always in the same order
    assert len({tuple(turns[i : i + 3]) for i in range(0, len(turns), 3)}) > 1
    for name, milliseconds in found.items():
        assert len(milliseconds) >= LEAST * ROUNDS
        assert said.count(name) > len(milliseconds)  # some passes warm up and do not count


def test_times_are_in_milliseconds() -> None:
    import time

    found = times({"sleep": lambda: time.sleep(0.002)}, seconds=1e-6)
    assert 2 <= np.median(found["sleep"]) < 200


def test_median_and_p95() -> None:
    assert median_and_p95([float(i) for i in range(1, 101)]) == (50.5, 95.0)
    found = row(Measurement("cpu", "eager", 64, "student"), [4.0] * 9 + [50.0])
    assert found.plain() == {
        "device": "cpu",
        "backend": "eager",
        "batch": 64,
        "median": 4.0,
        "p95": 4.0,
        "images_per_second": 16_000.0,
        "passes": 10,
    }


def model(role: str, scale: float, *backends: str) -> ModelCosts:
    rows = [
        row(
            Measurement("cpu", backend, batch, role),
            [scale * batch, scale * batch, 3 * scale * batch],
        )
        for backend in backends
        for batch in (1, 64)
    ]
    return ModelCosts(
        role=role,
        net=role.upper(),
        stage="key",
        params=int(1000 * scale),
        macs=int(1000 * scale),
        bytes=int(1000 * scale),
        onnx_bytes=None,
        onnx_int8_bytes=None,
        peak_activation_bytes={"cpu": {"1": int(100 * scale), "64": int(6400 * scale)}},
        latency=rows,
    )


def test_ratios_to_the_teacher() -> None:
    found = ratios(model("student", 2, "eager", "compile"), model("teacher", 10, "eager"))
    assert (found.params, found.macs, found.bytes) == (5, 5, 5)
    assert found.peak_activation_bytes == {"cpu": {"1": 5, "64": 5}}
    assert [each.plain() for each in found.latency] == [
        {"device": "cpu", "backend": "eager", "batch": batch, "ratio": 5} for batch in (1, 64)
    ]


def made_up() -> BenchmarkRecord:
    teacher, student = model("teacher", 10, "eager"), model("student", 2, "eager", "compile")
    models = [
        each.model_copy(update={"to_teacher": ratios(each, teacher)}) for each in (teacher, student)
    ]
    return BenchmarkRecord(
        schema_number=1,
        run="run",
        finished="",
        git=None,
        command="",
        environment=Environment(
            python="", torch="", lightning="", device="A CPU", cpu="A CPU", threads=2
        ),
        name="x",
        shape=(1, 8, 10),
        models=models,
        seconds=1.0,
        rounds=20,
        missing={},
        unavailable=[
            UnavailablePass(
                device="cpu", backend="compile", batch=batch, role="teacher", reason="no compiler"
            )
            for batch in (1, 64)
        ],
    )


def test_the_table_has_a_row_for_each_latency() -> None:
    rows = latency_rows(made_up())
    assert [each[1:4] for each in rows] == [
        ["eager", "1", "teacher"],
        ["eager", "1", "student"],
        ["compile", "1", "student"],
        ["eager", "64", "teacher"],
        ["eager", "64", "student"],
        ["compile", "64", "student"],
    ]
    assert rows[1][4:] == ["2", "2", "3", "500", "5x"]  # of three passes
    said = sentences(made_up())
    assert "2 threads" in said[0]
    assert said[-1] == "Not run: compile on cpu (teacher): no compiler"
    assert sum("Not run" in line for line in said) == 1


def test_the_picture_shows_each_latency() -> None:
    found = made_up()
    student = found.models[1]
    student.latency[0] = student.latency[0].model_copy(update={"p95": 3.5})
    figure = figure_of(found)
    assert [axes.get_title(loc="left").partition(",")[0] for axes in figure.axes] == [
        "1 image at once",
        "64 images at once",
    ]
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["eager", "compile"]
    lines = [tuple(line.get_xdata()) for line in first.lines if len(line.get_xdata()) == 2]
    assert (2.0, 3.5) in lines
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "teacher: TEACHER",
        "student: STUDENT",
    }
    assert "ms" in first.get_xlabel()


def test_a_run_is_measured(finished: Path, tmp_path: Path) -> None:
    asked = config(finished, "backends=[eager]", f"out={tmp_path}", "threads=2", "batches=[1,8]")
    file = benchmark(open_run(finished), asked, "python -m kd.benchmark x=1")
    assert torch.get_num_threads() == 1  # as before
    assert {path.name for path in tmp_path.iterdir()} == {
        f"benchmark.{kind}" for kind in ("json", "md", "png", "svg")
    }
    found = json.loads(file.read_text())
    assert found["environment"]["threads"] == 2
    report = json.loads((finished / "report.json").read_text())
    for each, before in zip(found["models"], report["models"], strict=True):
        assert [each[key] for key in ("role", "params", "macs", "bytes")] == [
            before[key] for key in ("role", "params", "macs", "bytes")
        ]
        here = [one for one in each["latency"] if one["device"] == "cpu"]
        assert [(one["backend"], one["batch"]) for one in here] == [("eager", 1), ("eager", 8)]
        assert all(0 < one["median"] <= one["p95"] for one in here)
    # 64 inputs to 16 or 8 hidden ones.
    assert found["models"][0]["to_teacher"]["params"] == 1
    ratio = (64 * 16 + 16 + 16 * 10 + 10) / (64 * 8 + 8 + 8 * 10 + 10)
    assert found["models"][2]["to_teacher"]["params"] == pytest.approx(ratio)
    text = (tmp_path / "benchmark.md").read_text()
    assert "python -m kd.benchmark x=1" in text
    assert "| cpu | eager | 8 | student |" in text
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_backends_give_the_same_answers(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = MLP(num_classes=10, in_channels=1, image_size=8, hidden=[16]).eval()
    net.normalization = ((0.3,), (0.5,))  # type: ignore[assignment]
    subject = NetRunner(net, SHAPE, tmp_path, threads=1)
    run = subject.runs("onnx", "cpu", 5)
    assert np.shape(run()[0]) == (5, 10)  # type: ignore[index]
    images = torch.rand(5, 1, 8, 8)
    session = onnxruntime.InferenceSession(
        str(subject.file("onnx")), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        assert np.abs(found - net((images - 0.3) / 0.5).numpy()).max() < 1e-5
    assert np.shape(subject.runs("onnx_int8", "cpu", 2)()[0]) == (2, 10)  # type: ignore[index]
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"onnx.onnx", "onnx_int8.onnx"}
    for backend in ("onnx_fp16", "openvino", "pt2"):
        subject.runs(backend, "cpu", 2)()
    assert {path.suffix for path in tmp_path.iterdir()} == {".onnx", ".xml", ".bin", ".pt2"}


def test_a_backend_that_is_not_there_is_named(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    file = benchmark(open_run(finished), config(finished, f"out={tmp_path}", "batches=[1]"), "")
    found = json.loads(file.read_text())
    reasons = {
        each["backend"]: each["reason"] for each in found["unavailable"] if each["device"] == "cpu"
    }
    assert reasons == {
        "compile": "RuntimeError: No working C++ compiler found",
        "onnx": "onnxruntime is not installed: pip install 'kd[export]'",
        "onnx_int8": "onnxruntime is not installed: pip install 'kd[export]'",
    }
    assert {one["backend"] for each in found["models"] for one in each["latency"]} == {"eager"}
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "Not run: compile on cpu (teacher, baseline, student): RuntimeError: No working C++ "
        "compiler found" in out
    )


def test_onnx_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    pytest.importorskip("onnxruntime")
    subject = NetRunner(
        MLP(num_classes=10, in_channels=1, image_size=8), SHAPE, tmp_path, threads=1
    )
    with pytest.raises(UnavailableError, match="onnx is not installed"):
        subject.runs("onnx", "cpu", 1)


@pytest.mark.slow
def test_all_backends(finished: Path, tmp_path: Path) -> None:
    found = json.loads(
        benchmark(open_run(finished), config(finished, f"out={tmp_path}"), "").read_text()
    )
    assert [each for each in found["unavailable"] if each["device"] == "cpu"] == []
    for each in found["models"]:
        cells = {
            (one["backend"], one["batch"]) for one in each["latency"] if one["device"] == "cpu"
        }
        assert cells == {
            (name, batch) for name in ("eager", "compile", "onnx", "onnx_int8") for batch in (1, 64)
        }
        assert each["onnx_int8_bytes"] > 0
        assert each["onnx_bytes"] > 0
