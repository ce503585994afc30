"""Label files: tables in the place of class folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_image_folder import save, scene

from kd.data.image_folder import ImageFolder
from kd.data.label_file import find_files, read_label_file
from kd.errors import UserError
from kd.reports.label_doubts import sample


@pytest.mark.parametrize(
    ("text", "options", "rows", "classes"),
    [
        ("image,label\na,dog\nb,cat\n", {}, [("a", (1,), None), ("b", (0,), None)], ("cat", "dog")),
        (
            "Image Index,Finding Labels,split\na,10,train\nb,9,Valid\nc,9,test\n",
            {},
            [("a", (1,), "train"), ("b", (0,), "val"), ("c", (0,), "test")],
            ("9", "10"),
        ),
        ("id,cat,dog\na,0.0,1\nb,1,\n", {}, [("a", (1,), None), ("b", (0,), None)], ("cat", "dog")),
        (
            "x,age,cat,dog\na,43,0,1\nb,7,1,0\n",
            {"image_column": "x", "label_column": ["cat", "dog"]},
            [("a", (1,), None), ("b", (0,), None)],
            ("cat", "dog"),
        ),
    ],
)
def test_the_usual_forms_are_read(
    text: str, options: dict[str, Any], rows: list[Any], classes: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    assert read_label_file(file, **options) == (rows, classes)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a,b\n1,2\n", {}, "data.image_column: found null, but labels.csv has the columns a, b"),
        ("image,label\na,cat\na,dog\n", {}, "several rows of a"),
        ("image,label\na,cat\nb,\n", {}, r"1 of 2 rows of .* do not have one label: b has none"),
        ("image,label\na,cat\nb,cat\n", {}, "1 class, needed are two"),
        ("image,label\n", {}, "has no rows"),
        ("image,label,part\na,cat,tarin\nb,dog,test\n", {}, "holds 'tarin'; accepted are train"),
        (
            "image,cat,dog\na,1,1\nb,1,0\n",
            {},
            "1 of 2 rows .* a has cat, dog.*data.task=multilabel",
        ),
        ("image,cat,age\na,1,43\nb,1,0\n", {}, "data.label_column: the column age .* holds 43"),
        ("image,label\na,cat\n", {"label_column": "lable"}, "data.label_column: found lable"),
    ],
)
def test_what_it_lacks_is_named(
    text: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        read_label_file(file, **options)


def test_a_row_names_a_file_by_any_end_of_its_path(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("image,label\nset-v1/a/1.png,x\n2,y\nb/1,x\n")
    rows, _ = read_label_file(file)
    assert find_files(rows, ["b/1.png", "a/1.png", "c/2.jpg"]) == [1, 2, 0]
    with pytest.raises(
        UserError, match=r"1 of 3 rows have no image .*\(2\); 1 of 3 rows have several .*\(b/1\)"
    ):
        find_files(rows, ["a/1.png", "b/1.png", "b/1.jpg"])


@pytest.mark.parametrize("by", ["folder", "column"])
def test_a_table_says_what_class_folders_say(by: str, tmp_path: Path) -> None:
    lines = ["file,label" + (",part" if by == "column" else "")]
    for part, count in (("train", 8), ("test", 3)):
        for label in ("cat", "dog"):
            for i in range(count):
                picture = scene(top=(20 * i, len(label + part), 90 if label == "cat" else 9))
                name = f"{label}{i}{part}.png"
                save(tmp_path / "one" / part / label / name, picture)
                save(tmp_path / "two" / (part if by == "folder" else ".") / name, picture)
                lines.append(f"{name},{label}" + (f",{part}" if by == "column" else ""))
    save(tmp_path / "two" / "more.png", scene())
    (tmp_path / "two" / "labels.csv").write_text("\n".join(lines))
    options: dict[str, Any] = {"image_size": 8, "val_fraction": 0.25}
    one = ImageFolder(str(tmp_path / "one"), **options)
    two = ImageFolder(str(tmp_path / "two"), label_file="labels.csv", **options)
    assert two.classes == one.classes == ("cat", "dog")
    assert two.key() == one.key()
    assert two.split.test.fingerprint == one.split.test.fingerprint
    assert two.notes == ["1 of 23 images have no row in labels.csv: left out"]
    names = [f"train/{line.split(',')[0]}" for line in lines[1:17]]
    assert set(sample(two)[0].names) <= set(names), "as the report names the labels in doubt"
    assert torch.bincount(two.split.train.labels).tolist() == [6, 6]
