"""`kd.predict`: a row per image, from every kind of model; finding files; unreadable files."""

import csv
import json
from pathlib import Path

import pytest
import torch
from commands import exit_code
from PIL import Image
from shipped import CLASSES, Shipped

from kd import load
from kd.errors import UserError
from kd.predict import Predict, files_of


@pytest.fixture
def pictures(shipped: Shipped, tmp_path: Path) -> Path:
    """Five photographs at two depths, one with a comma in its name, one gray, and one that is no
    image.
    """
    folder = tmp_path / "pictures"
    (folder / "more" / "still").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b, c.PNG", "more/still/d.jpg", "more/e.bmp")):
        Image.open(shipped.photos / CLASSES[i % 3] / "01.png").save(folder / name)
    Image.open(shipped.photos / "dog" / "01.png").convert("L").save(folder / "gray.png")
    (folder / "more" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (folder / "notes.md").write_text("not looked at")
    return folder


def test_every_image_has_a_row_and_a_broken_one_its_error(
    shipped: Shipped, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = pictures / "preds.csv"
    assert exit_code("predict", f"model={shipped.run}", f"images={pictures}", f"out={out}") == 1
    assert "1 of 6 images could not be read" in capsys.readouterr().err
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "class", "cat", "dog", "p(error)", "error"]
    names = ["a.png", "b, c.PNG", "gray.png", "more/broken.jpg", "more/e.bmp", "more/still/d.jpg"]
    assert [row["path"] for row in rows] == [str(pictures / name) for name in names]
    model = load(shipped.run)
    for row in rows:
        said = [row["cat"], row["dog"], row["p(error)"]]
        if "broken" in row["path"]:
            assert row["error"]
            assert (row["class"], said) == ("", ["", "", ""])
            continue
        wanted = model(model.read(row["path"])).double().softmax(1)[0]
        assert torch.allclose(
            torch.tensor([float(each) for each in said]).double(), wanted, atol=1e-5
        )
        assert row["class"] == CLASSES[int(wanted.argmax())]
        assert row["error"] == ""


@pytest.mark.slow
def test_all_models_and_both_kinds_of_file_say_the_same(shipped: Shipped, pictures: Path) -> None:
    (pictures / "more" / "broken.jpg").unlink()
    found = []
    for model in (shipped.run, shipped.run / "student.safetensors", shipped.files / "student.onnx"):
        out = pictures / "preds.json"
        assert exit_code("predict", f"model={model}", f"images={pictures}", f"out={out}") == 0
        found.append(json.loads(out.read_text()))
    assert [row["error"] for row in found[0]] == [None] * 5
    assert set(found[0][0]["probabilities"]) == set(CLASSES)
    for other in found[1:]:
        assert [row["class"] for row in other] == [row["class"] for row in found[0]]
        for row, first in zip(other, found[0], strict=True):
            assert row["probabilities"] == pytest.approx(first["probabilities"], abs=1e-5)


def test_without_a_file_the_table_goes_to_stdout(
    shipped: Shipped, capsys: pytest.CaptureFixture[str]
) -> None:
    image = shipped.photos / "cat" / "01.png"
    assert (
        exit_code("predict", f"model={shipped.files / 'student.int8.onnx'}", f"images={image}") == 0
    )
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert [row[0] for row in rows] == ["path", str(image)]


def test_more_images_than_fit_a_batch_stay_in_order(shipped: Shipped, tmp_path: Path) -> None:
    from kd.shipping.predictions import rows

    files = sorted(shipped.photos.rglob("*.*"))
    assert len(files) == 90
    model = load(shipped.run)
    found = list(rows(model, files))
    assert [row.path for row in found] == [str(file) for file in files]
    wanted = model.probabilities(model.read(*files))
    assert torch.allclose(torch.tensor([row.probabilities for row in found]), wanted, atol=1e-6)


def test_what_images_means(pictures: Path) -> None:
    everything = files_of(str(pictures))
    assert len(everything) == 6
    assert everything == sorted(everything)
    assert files_of(str(pictures / "a.png")) == [pictures / "a.png"]
    assert files_of([str(pictures / "z.png"), str(pictures / "more")]) == [
        pictures / "z.png",
        *everything[3:],
    ]
    listed = pictures / "list.txt"
    listed.write_text(f"{pictures / 'gray.png'}\n\n  {pictures / 'a.png'}\n")
    assert files_of(str(listed)) == [pictures / "gray.png", pictures / "a.png"]
    listed.write_text(f"\ufeff{pictures / 'gray.png'}\n")  # a byte-order mark, as Windows writes
    assert files_of(str(listed)) == [pictures / "gray.png"]


def test_a_listed_file_that_is_not_there_has_a_row_too(
    shipped: Shipped, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = f"images=[{pictures / 'z.png'},{pictures / 'a.png'}]"
    assert exit_code("predict", f"model={shipped.run / 'student.safetensors'}", asked) == 1
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["error"] for row in rows] == ["No such file or directory", ""]


def test_nothing_is_left_of_a_table_that_was_not_finished(shipped: Shipped, tmp_path: Path) -> None:
    from kd.shipping.predictions import _writer

    with pytest.raises(RuntimeError), _writer(str(tmp_path / "x.csv"), CLASSES):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_the_config_says_what_out_may_be(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(UserError, match="is a folder; name a file"):
        Predict(
            model="m", images="i", out=str(tmp_path / "a.csv"), device="cpu", debug=False, trust=[]
        )
