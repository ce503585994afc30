"""Quantization-aware training: rounding by formula, gradient, affected layers, a stage."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from composed import composed, plan
from shipped import Shipped
from torch import nn

from kd.config.schema import Config, check
from kd.data.digits import Digits
from kd.nets.cnn import CNN
from kd.runs.run import run
from kd.shape import Shape
from kd.shipping.formats import quantize, write_onnx
from kd.stages.stage import make_stage
from kd.training.fake_quantize import fake_quantize, rounded_activations, rounded_weights


def test_weights_are_rounded_by_output_channel() -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[2] *= 100
    weight[3] = 0
    for row, found in zip(
        weight.double().numpy(), rounded_weights(weight).double().numpy(), strict=True
    ):
        step = np.abs(row).max() / 127
        wanted = np.round(row / step) * step if step else row
        assert np.abs(found - wanted).max() <= 1e-5 * max(step, 1e-9) + 1e-6 * np.abs(row).max()
        assert len(np.unique(found)) <= 255


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0)])
def test_activations_are_rounded_between_their_extremes_and_zero_stays_zero(
    low: float, high: float
) -> None:
    x = torch.linspace(low, high, 1001)
    if low < 0 < high:
        x[500] = 0
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    zero = round(-low / step)
    wanted = (np.clip(np.round(x.double().numpy() / step) + zero, 0, 255) - zero) * step
    found = rounded_activations(x).double().numpy()
    # Where float32 rounds to the other side of a half
    assert np.mean(np.abs(found - wanted) > 1e-5) < 0.01
    assert np.abs(found - x.numpy()).max() <= step
    assert x[500] != 0 or found[500] == 0
    assert (rounded_activations(torch.zeros(4)) == 0).all()


def test_the_gradient_passes_through() -> None:
    weight = torch.randn(4, 6, requires_grad=True)
    rounded_weights(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(4, 6))  # type: ignore[arg-type]
    x = torch.randn(8, requires_grad=True)
    (3 * rounded_activations(x)).sum().backward()
    assert (x.grad == 3).sum() >= 6  # the extremes may be cut by half a step


def test_layers_round_and_keep_their_names() -> None:
    class Odd(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 4), Odd(4, 4)
    ).eval()
    names, x = list(net.state_dict()), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        plain = net(x)
        conv = nn.functional.conv2d(
            rounded_activations(x), rounded_weights(net[0].weight), net[0].bias
        )
        flat = net[1](conv).flatten(1)
        wanted = nn.functional.linear(
            rounded_activations(flat), rounded_weights(net[3].weight), net[3].bias
        )
        assert fake_quantize(net) == 2
        assert torch.equal(net(x), wanted)
    assert not torch.equal(wanted, plain)
    assert list(net.state_dict()) == names


def test_a_rounding_net_is_nearer_to_the_int8_file_than_a_plain_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, shape = CNN(10, 1, width=8).eval(), Shape(1, 8, 10)
    x = torch.rand(64, 1, 8, 8)
    file = write_onnx(net, shape, None, tmp_path / "a.onnx", metadata={"x": "y"})
    quantize(file, tmp_path / "b.onnx", iter([x.numpy()]))
    assert {each.key: each.value for each in onnx.load(tmp_path / "b.onnx").metadata_props}[
        "x"
    ] == "y"
    # As the file says: its kernels for processors without VNNI add in 16 bits, which overflow
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "b.onnx", options)
    (int8,) = session.run(None, {"images": x.numpy()})
    with torch.no_grad():
        plain = net(x)
        fake_quantize(net)
        rounding = net(x)
    errors = [float(np.abs(int8 - each.numpy()).mean()) for each in (plain, rounding)]
    assert errors[1] < 0.8 * errors[0]


def test_the_key_of_other_stages_does_not_know_of_it(
    make_config: Callable[..., Config], digits: Digits
) -> None:
    config = make_config(
        "stages=[baseline,quantize]", "stage.quantize.loss=labels", "stage.quantize.start=baseline"
    )
    baseline = make_stage(plan(config, "baseline"), config, digits, {})
    assert "fake_quantize" not in baseline.spec.plain()
    assert plan(config, "quantize").fake_quantize


def test_a_stage_rounds_while_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from composed import TINY

    def trained(*overrides: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        folder = run(
            check(composed(*TINY, "trainer=cpu", f"output_dir={tmp_path}", *overrides)), "a test"
        )
        from safetensors.torch import load_file

        student = json.loads((folder / "report.json").read_text())["models"][-1]
        assert student["role"] == "student"
        return load_file(folder / "student.safetensors"), student["val"]

    short = ("experiment=quantize", "stage.quantize.epochs=1")
    rounded, _ = trained(*short, "name=a")
    assert "quantize: 2 layers round to 8 bits" in capsys.readouterr().err
    plain, _ = trained(*short, "stage.quantize.fake_quantize=false", "name=b")
    assert "layers round" not in capsys.readouterr().err
    assert list(rounded) == list(plain)
    assert any(not torch.equal(rounded[name], plain[name]) for name in plain)


def test_the_shipped_student_is_exported_without_rounding(shipped: Shipped) -> None:
    kinds = {node.op_type for node in onnx.load(shipped.files / "student.onnx").graph.node}
    assert not {kind for kind in kinds if "Quantize" in kind}
