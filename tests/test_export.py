"""Exported files without kd, against PyTorch; their contents; and removal of files that fail a
check.
"""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from shipped import CLASSES, SIZE, Shipped
from torch import nn

from kd.errors import CommandError, UserError, WriteError
from kd.files.export_file import ExportRecord
from kd.nets.cnn import CNN
from kd.runs.reader import open_run
from kd.shape import Shape
from kd.shipping import formats
from kd.shipping.export_run import export
from kd.shipping.export_text import as_markdown
from kd.shipping.formats import write_onnx
from kd.shipping.runtimes import PACKAGES


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def pytorch(run: Path, pixels: np.ndarray) -> np.ndarray:
    """The run's student, rebuilt by hand from its weights file, with float64 normalisation."""
    with safe_open(run / "student.safetensors", "pt") as file:
        about = json.loads(file.metadata()["kd"])
        net = CNN(len(CLASSES), 3, width=8)
        net.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no dictionary
    mean, std = (np.array(about[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        return net.eval()(torch.from_numpy((pixels - mean) / std).float()).numpy()


@pytest.fixture
def copied(shipped: Shipped, tmp_path: Path) -> Shipped:
    """A run that may be modified."""
    shutil.copytree(shipped.run, tmp_path / "run")
    return Shipped(tmp_path / "run", shipped.photos)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_files_give_pytorchs_logits_for_pixels_in_0_to_1(shipped: Shipped, batch: int) -> None:
    pixels = np.random.default_rng(batch).random((batch, 3, SIZE, SIZE), dtype=np.float32)
    wanted = pytorch(shipped.run, pixels)
    (found,) = session(shipped.files / "student.onnx").run(None, {"images": pixels})
    assert np.abs(found - wanted).max() < 1e-4
    archive = torch.export.load(shipped.files / "student.pt2").module()
    assert np.abs(archive(torch.from_numpy(pixels)).detach().numpy() - wanted).max() < 1e-4
    (whole_numbers,) = session(shipped.files / "student.int8.onnx").run(None, {"images": pixels})
    assert 0 < np.abs(whole_numbers - wanted).max() < 0.2 * np.ptp(wanted)


def test_a_file_says_what_it_is(shipped: Shipped) -> None:
    with safe_open(shipped.run / "student.safetensors", "pt") as file:
        about = json.loads(file.metadata()["kd"])
    packed = {"kd.json": ""}
    torch.export.load(shipped.files / "student.pt2", extra_files=packed)
    for said in (
        {each.key: each.value for each in onnx.load(shipped.files / "student.onnx").metadata_props},
        {
            each.key: each.value
            for each in onnx.load(shipped.files / "student.int8.onnx").metadata_props
        },
        json.loads(packed["kd.json"]),
    ):
        found = {
            key: json.loads(said[key])
            for key in ("classes", "image_size", "channels", "mean", "std", "run")
        }
        assert found == {
            "classes": list(CLASSES),
            "image_size": SIZE,
            "channels": 3,
            "mean": about["mean"],
            "std": about["std"],
            "run": "shipped",
        }
    assert not list(shipped.files.glob("*.data"))  # one file each


def test_nothing_but_the_net_is_in_a_file(shipped: Shipped) -> None:
    # The CNN of width 8 for 3 channels and classes, layer by layer, with mean and std. CTKD's
    # temperature is not in it.
    convolutions, channels, last = (
        3 * 9 * 8 + 8 * 9 * 16 + 2 * 16 * 9 * 16,
        8 + 3 * 16,
        (16 + 1) * 3,
    )
    params = convolutions + 2 * channels + last
    graph = onnx.load(shipped.files / "student.onnx").graph
    arrays = [onnx.numpy_helper.to_array(each) for each in graph.initializer]
    assert (
        sum(array.size for array in arrays if array.dtype == np.float32)
        == convolutions + channels + last + 2 * 3
    )
    # The norms are fused into the convolutions there. Here they are separate, with statistics and a
    # counter.
    archive = torch.export.load(shipped.files / "student.pt2")
    assert (
        sum(tensor.numel() for tensor in archive.state_dict.values())
        == params + 2 * channels + 4 + 2 * 3
    )
    (row, *_) = json.loads((shipped.files / "export.json").read_text())["files"]
    assert row["params"] == params


def test_int8_is_int8_per_channel(shipped: Shipped) -> None:
    graph = onnx.load(shipped.files / "student.int8.onnx").graph
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    weights = [array for array in arrays.values() if array.dtype == np.int8 and array.ndim == 4]
    assert sorted(len(array) for array in weights) == [8, 16, 16, 16]
    scales = [
        arrays[node.input[1]].shape for node in graph.node if node.op_type == "DequantizeLinear"
    ]
    assert {(8,), (16,)} <= set(scales)
    assert any(node.op_type == "QuantizeLinear" for node in graph.node)


def test_int8_is_reported_beside_float32(shipped: Shipped) -> None:
    found = json.loads((shipped.files / "export.json").read_text())
    report = json.loads((shipped.run / "report.json").read_text())
    rows = {row["format"]: row for row in found["files"]}
    test = rows["int8"]["test"]
    student = report["models"][-1]["test"]
    assert test["float32"] == student["accuracy"]
    assert test["images"] == report["data"]["test"]
    folder = open_run(shipped.run).data().split.test
    (logits,) = session(shipped.files / "student.int8.onnx").run(
        None, {"images": (folder.pixels[:].numpy() / 255).astype(np.float32)}
    )
    assert test["accuracy"] == pytest.approx(
        float((logits.argmax(1) == folder.labels.numpy()).mean())
    )
    assert rows["onnx"]["bytes"] == (shipped.files / "student.onnx").stat().st_size
    assert "int8 next to float32" in (shipped.files / "export.md").read_text()


def test_each_net_among_the_files_has_its_own_parameters(shipped: Shipped) -> None:
    found = ExportRecord.model_validate_json((shipped.files / "export.json").read_text())
    mine = f"- The student: {found.files[0].params:,} parameters as it is exported, of {found.run}."
    assert as_markdown(found).count(mine) == 1
    other = found.files[0].model_copy(
        update={"role": "teacher", "file": "teacher.onnx", "run": "/runs/b", "params": 12345678}
    )
    text = as_markdown(found.model_copy(update={"files": [*found.files, other]}))
    assert text.startswith("# Exported files\n")
    assert text.count(mine) == 1
    assert "- The teacher: 12,345,678 parameters as it is exported, of /runs/b." in text
    large = other.model_copy(update={"bytes": 44_759_700})
    assert "| teacher.onnx | 44.8 MB |" in as_markdown(found.model_copy(update={"files": [large]}))


def test_float16_and_openvino_are_checked_on_real_images(copied: Shipped) -> None:
    openvino = pytest.importorskip("openvino")
    words = copied.config("formats=[fp16,openvino]")
    found = json.loads(export(open_run(copied.run), words, "again").read_text())
    rows = {row["format"]: row for row in found["files"]}
    assert all(rows[name]["refused"] is None for name in ("fp16", "openvino"))
    assert rows["fp16"]["test"]["images"] == found["checked_on"]["test"]
    pixels = np.random.default_rng(0).random((3, 3, SIZE, SIZE), dtype=np.float32)
    wanted = pytorch(copied.run, pixels)
    half = copied.files / "student.fp16.onnx"
    (logits,) = session(half).run(None, {"images": pixels})
    assert logits.dtype == np.float32
    assert np.abs(logits - wanted).max() < 1e-2 * np.abs(wanted).max()
    kinds = {each.data_type for each in onnx.load(half).graph.initializer if len(each.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    asked = openvino.Core().compile_model(
        str(copied.files / "student.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert np.abs(asked([pixels])[0] - wanted).max() < 1e-4
    weights = (copied.files / "student.bin").stat().st_size
    assert rows["openvino"]["bytes"] == (copied.files / "student.xml").stat().st_size + weights
    about = json.loads((copied.files / "student.json").read_text())
    assert (about["classes"], about["normalizes"]) == (list(CLASSES), True)


def test_a_format_whose_package_is_not_installed_is_one_message(
    copied: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGES, "litert", (("no-such-package",), "litert"))
    with pytest.raises(
        UserError, match=r"^formats: no-such-package is not installed: pip install 'kd\[litert\]'"
    ):
        export(open_run(copied.run), copied.config("formats=[onnx,litert]"), "again")


def test_a_file_that_fails_its_check_is_removed_and_the_others_stay(
    copied: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blank(
        net: nn.Module, shape: Shape, normalization: Any, path: Path, *, metadata: Any
    ) -> Path:
        return write_onnx(
            CNN(shape.num_classes, shape.channels, width=8),
            shape,
            normalization,
            path,
            metadata=metadata,
        )

    monkeypatch.setattr(formats, "write_onnx", blank)
    with pytest.raises(
        CommandError, match=r"student.onnx is refused and removed: differs by .* from PyTorch"
    ):
        export(open_run(copied.run), copied.config("formats=[onnx,pt2]"), "again")
    assert sorted(each.name for each in copied.files.glob("student*")) == [
        "student.int8.onnx",
        "student.json",
        "student.pt2",
    ]
    rows = {
        row["file"]: row for row in json.loads((copied.files / "export.json").read_text())["files"]
    }
    # The earlier one stays in the record.
    assert sorted(rows) == ["student.int8.onnx", "student.onnx", "student.pt2"]
    assert rows["student.onnx"]["refused"]


def test_int8_that_loses_too_much_is_refused(
    copied: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruined(source: Path, path: Path, calibration: Any) -> Path:
        model = onnx.load(source)
        for each in model.graph.initializer:
            array = onnx.numpy_helper.to_array(each)
            if array.shape == (len(CLASSES), 16):  # the last layer
                each.CopyFrom(onnx.numpy_helper.from_array(-array, each.name))
        onnx.save(model, path)
        return path

    monkeypatch.setattr(formats, "quantize", ruined)
    with pytest.raises(
        CommandError, match=r"student.int8.onnx is refused .* points of validation accuracy"
    ):
        export(open_run(copied.run), copied.config("formats=[int8]"), "again")
    assert not (copied.files / "student.int8.onnx").exists()


def test_an_exporter_that_breaks_down_is_named(
    copied: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Path:
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setattr(formats, "write_onnx", broken)
    with pytest.raises(
        CommandError, match=r"student.onnx is refused and removed: RuntimeError: no such operator$"
    ):
        export(open_run(copied.run), copied.config("formats=[onnx]"), "again")


def test_an_earlier_file_stays_where_there_is_no_room(
    copied: Shipped, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied.files / "student.onnx"
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match=rf"cannot write {path}: {os.strerror(errno.ENOSPC)}"):
        export(open_run(copied.run), copied.config("formats=[onnx]"), "")
    assert path.read_bytes() == before


def test_without_the_data_float32_is_checked_on_random_pixels(copied: Shipped) -> None:
    gone = copied.config("formats=[pt2]", "data.root=/no/photos")
    found = json.loads(export(open_run(copied.run), gone, "again").read_text())
    assert found["checked_on"] == {"random": 64}
    assert "/no/photos" in found["without_data"]
    with pytest.raises(UserError, match=r"no folder /no/photos\n.*formats=\[onnx,pt2\] do without"):
        export(open_run(copied.run), copied.config("data.root=/no/photos"), "again")


def test_data_of_another_number_of_classes_is_refused(copied: Shipped, tmp_path: Path) -> None:
    shutil.copytree(copied.photos, tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos" / "cat")
    with pytest.raises(UserError, match=r"data: .*dog, error.*run's nets are for .*cat"):
        export(open_run(copied.run), copied.config(f"data.root={tmp_path / 'photos'}"), "again")


def test_the_net_and_its_mode_stay_as_they_are(tmp_path: Path) -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3),
        torch.nn.BatchNorm2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(72, 4),
    )
    net[1].eval()
    before, drawn = (
        {name: value.clone() for name, value in net.state_dict().items()},
        torch.get_rng_state(),
    )
    write_onnx(net, Shape(1, 8, 4), ((0.5,), (0.5,)), tmp_path / "x.onnx", metadata={"a": "b"})
    assert [module.training for module in net] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
