"""Models from a run, a weights file and ONNX files give one answer; other files are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from made_reports import as_report
from safetensors.torch import load_file, save_file
from shipped import CLASSES, SIZE, Shipped

from kd import load
from kd.errors import UserError
from kd.reports.model_card import model_card
from kd.runs.reader import open_run
from kd.shipping.export_run import export


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(
        0, 256, (5, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_all_forms_give_the_same(shipped: Shipped, tmp_path: Path) -> None:
    # Photographs, not noise: int8 has the ranges of its calibration data.
    pixels = load(shipped.run).read(*map(str, sorted(shipped.photos.glob("*/*"))[::18]))
    outside = shipped.config("formats=[onnx]", "normalize=false", f"out={tmp_path}")
    export(open_run(shipped.run), outside, "again")
    paths = {
        "run": shipped.run,
        "weights": shipped.run / "student.safetensors",
        "onnx": shipped.files / "student.onnx",
        "not normalising": tmp_path / "student.onnx",
        "int8": shipped.files / "student.int8.onnx",
    }
    said = {name: load(path).probabilities(pixels) for name, path in paths.items()}
    for name in ("weights", "onnx", "not normalising"):
        assert torch.allclose(said["run"], said[name], atol=1e-5), name
    assert torch.allclose(said["run"], said["int8"], atol=0.05)
    assert torch.equal(said["run"].argmax(1), said["int8"].argmax(1))
    assert torch.allclose(said["run"].sum(1), torch.ones(5))


def test_a_model_says_what_it_takes(shipped: Shipped) -> None:
    for path in (shipped.run, shipped.files / "student.onnx"):
        model = load(path)
        assert (model.classes, model.channels, model.image_size) == (CLASSES, 3, SIZE)
        assert not model.training


def test_float_and_uint8_pixels_are_one(shipped: Shipped, pixels: torch.Tensor) -> None:
    model = load(shipped.run)
    assert torch.equal(model(pixels), model(pixels.float() / 255))
    assert torch.equal(model(pixels), model(pixels.double() / 255))
    assert not model(pixels).requires_grad


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, SIZE, SIZE), r"found \[2, 1, 12, 12\], wanted are \[B, 3, 12, 12\]"),
        (torch.zeros(3, SIZE, SIZE), r"found \[3, 12, 12\]"),
        (torch.full((1, 3, SIZE, SIZE), 255.0), r"found 255 to 255, wanted is \[0, 1\]"),
        (torch.full((1, 3, SIZE, SIZE), -2.0), "found -2"),
        (torch.full((1, 3, SIZE, SIZE), float("nan")), "found nan"),
    ],
)
def test_other_images_are_refused(shipped: Shipped, images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(shipped.run)(images)


def test_files_are_decoded_as_for_the_training(shipped: Shipped) -> None:
    model, data = load(shipped.run), open_run(shipped.run).data()
    images = data.read().train
    files = sorted((shipped.photos / CLASSES[0]).iterdir()) + sorted(
        (shipped.photos / CLASSES[1]).iterdir()
    )
    assert torch.equal(model.read(*files), images.pixels[: len(files)])
    with pytest.raises(UserError, match=r"x.png: No such file"):
        model.read("x.png")


def with_header(source: Path, to: Path, **changes: Any) -> Path:
    from kd.files.header import header_of

    save_file(load_file(source), to, {"kd": json.dumps({**(header_of(source) or {}), **changes})})
    return to


def with_metadata(source: Path, to: Path, **changes: Any) -> Path:
    model = onnx.load(source)
    said = {each.key: each.value for each in model.metadata_props}
    onnx.helper.set_model_props(
        model, {**said, **{key: json.dumps(value) for key, value in changes.items()}}
    )
    onnx.save(model, to)
    return to


def test_a_weights_file_builds_only_what_is_trusted(shipped: Shipped, tmp_path: Path) -> None:
    weights = shipped.run / "student.safetensors"
    with pytest.raises(UserError, match=r"names 'os.system'; .*trust="):
        load(
            with_header(
                weights, tmp_path / "a.safetensors", net={"_target_": "os.system", "command": "x"}
            )
        )


def test_weights_files_that_do_not_fit(shipped: Shipped, tmp_path: Path) -> None:
    weights = shipped.run / "student.safetensors"
    with pytest.raises(UserError, match="header names 2 classes for a net of 3"):
        load(with_header(weights, tmp_path / "b.safetensors", classes=["a", "b"]))
    with pytest.raises(UserError, match="the file is for 3 classes, the data has 2"):
        load(
            with_header(weights, tmp_path / "c.safetensors", classes=["a", "b"], shape=[3, SIZE, 2])
        )
    save_file(load_file(weights), tmp_path / "d.safetensors")
    with pytest.raises(UserError, match="does not say what net it is for"):
        load(tmp_path / "d.safetensors")


def test_onnx_files_that_are_none_of_ours(shipped: Shipped, tmp_path: Path) -> None:
    ours = shipped.files / "student.onnx"
    model = onnx.load(ours)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="is none of our ONNX files"):
        load(tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="names 2 classes, but gives"):
        load(with_metadata(ours, tmp_path / "two.onnx", classes=["a", "b"]))
    with pytest.raises(UserError, match="is damaged"):
        load(with_metadata(ours, tmp_path / "size.onnx", channels=1))
    with pytest.raises(UserError, match="later kd"):
        load(with_metadata(ours, tmp_path / "later.onnx", kd_schema=99))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(UserError, match="is no ONNX file, or a damaged one"):
        load(tmp_path / "text.onnx")


def test_paths_that_are_no_model(shipped: Shipped, tmp_path: Path) -> None:
    for wrong, message in (
        (tmp_path, "has no report.json, so it is no run's"),
        (tmp_path / "nothing", "there is no folder"),
        (
            shipped.run / "studnt.safetensors",
            r"there is no file .*did you mean 'student.safetensors'",
        ),
        (shipped.run / "config.yaml", "is no model of ours; accepted are a run's folder"),
        (shipped.files / "student.pt2", "is no model of ours"),
    ):
        with pytest.raises(UserError, match=message):
            load(wrong)
    shutil.copytree(
        shipped.run, tmp_path / "without", ignore=shutil.ignore_patterns("student.safetensors")
    )
    with pytest.raises(UserError, match="has no student"):
        load(tmp_path / "without")
    (tmp_path / "x.partial").mkdir()
    with pytest.raises(UserError, match="is not finished"):
        load(tmp_path / "x.partial")


def test_devices(shipped: Shipped) -> None:
    with pytest.raises(UserError, match="device: found 'cuda:77'"):
        load(shipped.run, device="cuda:77")
    with pytest.raises(UserError, match="device: found 'gpuu'"):
        load(shipped.run, device="gpuu")
    with pytest.raises(UserError, match="an ONNX file is asked on the cpu"):
        load(shipped.files / "student.onnx", device="cuda")


def test_the_model_card(shipped: Shipped) -> None:
    card = (shipped.run / "MODEL_CARD.md").read_text()
    report = json.loads((shipped.run / "report.json").read_text())
    student = report["models"][-1]
    low, high = student["test"]["accuracy_ci95"]
    for said in (
        "Licence of the data, as stated by whoever trained the model: CC0.",
        f"{100 * student['test']['accuracy']:.2f} % [{100 * low:.1f}, {100 * high:.1f}]",
        "cat, dog, error",
        f"with {student['params']:,} parameters",
        f"`{report['command']}`",
        "The test is small",
        f'load("{shipped.run.name}")',
    ):
        assert said in card, said
    confusion = np.array(student["test"]["confusion"])
    worst = (confusion.diagonal() / confusion.sum(1)).argmin()
    assert f"the worst first: {CLASSES[worst]} " in card
    assert "are uneven" not in card


def test_the_card_warns_of_what_the_report_shows(shipped: Shipped) -> None:
    report = json.loads((shipped.run / "report.json").read_text())
    report["data"] |= {"license": None, "test": 5000}
    report["models"][-1]["test"] |= {"confusion": [[10, 0, 0], [0, 1, 1], [5, 0, 35]], "ece": 0.2}
    card = model_card(as_report(report), "x")
    assert "the worst first: dog 50 % of 2, error 88 % of 40, cat 100 % of 10." in card
    assert "The classes are uneven: 2 to 40 test images" in card
    assert "off by 0.200 on average" in card
    assert "stated by whoever trained the model: not stated" in card
    assert "The test is small" not in card
    worst = [{"label": 2, "images": 40, "right": 10}, {"label": 0, "images": 10, "right": 9}]
    many = {"confusion": None, "worst_classes": worst, "ece": 0.01}  # too many to count
    report["models"][-1]["test"] |= many
    report["data"]["classes"] += [f"n{i}" for i in range(98)]
    card = model_card(as_report(report), "x")
    assert "off by" not in card
    assert "the 20 worst: error 25 % of 40, cat 90 % of 10." in card
