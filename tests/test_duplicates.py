"""Duplicate images: messages, dropping, and splitting."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import exit_code
from composed import TINY
from made_reports import REPORT, made_report
from PIL import Image

from kd.data.base import DataModule, Images, Source
from kd.data.images import Facts, Pixels, PixelStore
from kd.data.parts import check_counts, hold_out
from kd.errors import UserError
from kd.files.header import STUDENT
from kd.reports.run_report import verdict
from kd.shipping.model import load_model

PAGES = ("report.md", "report.html", "MODEL_CARD.md")


def images(numbers: list[int], labels: list[int], groups: list[str] | None = None) -> Images:
    """One-pixel images; equal numbers are equal images."""
    return Images(
        torch.tensor(numbers, dtype=torch.uint8)[:, None, None, None], torch.tensor(labels), groups
    )


class Given(DataModule):
    """A source with given parts."""

    def __init__(
        self, train: Images, test: Images | None, val: Images | None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.source = Source(train, test, ("a", "b"), val)

    def read(self) -> Source:
        return self.source


TRAIN = images([1, 2, 3, 3, 4, 5, 6, 6], [0, 0, 0, 0, 1, 1, 1, 0])  # 3 twice, 6 under two labels
VAL = images([4, 7, 8, 8, 11], [1, 0, 1, 1, 0])  # 4 is in train
TEST = images([1, 7, 9, 9, 10], [1, 0, 0, 0, 1])  # 1 is in train under another label, 7 in val


def numbers(part: Images) -> list[int]:
    return part.pixels[:].flatten().tolist()


def test_duplicates_are_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    data = Given(TRAIN, TEST, VAL)
    split = data.split
    assert [numbers(part) for part in (split.train, split.val, split.test)] == [
        numbers(part) for part in (TRAIN, VAL, TEST)
    ]
    found = data.duplicates
    assert found.across == {"test in validation": 1, "test in train": 1, "validation in train": 1}
    assert found.within == {"train": 2, "validation": 1, "test": 1}
    assert found.contradicting == 2
    assert found.examples == ["test 1 = validation 1", "test 0 = train 0", "validation 0 = train 4"]
    (note,) = data.notes
    assert "of 5 in test 1 also in train" in note
    assert "under more than one label: 2" in note
    assert len([line for line in capsys.readouterr().err.splitlines() if "duplicate" in line]) == 1


@pytest.mark.parametrize("policy", ["warn", "drop"])
def test_carved_test_images_among_the_unlabelled_are_told(
    policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part of train that becomes the test part was compared with them as train."""
    pool = images([*range(20), 77], [-1] * 21)
    monkeypatch.setattr(DataModule, "_pool", lambda self, train: pool)
    data = Given(images([*range(20)], [0, 1] * 10), None, None, on_duplicate=policy)
    test, val = len(data.split.test), len(data.split.val)
    assert data.split.unlabeled is not None
    told = [note for note in data.notes if "which the student sees" in note]
    if policy == "drop":
        assert (numbers(data.split.unlabeled), told) == ([77], [])
        return
    assert len(told) == 2
    assert told[0].startswith(f"of {test} in test {test} also in unlabeled")
    assert data.duplicates.across["test in unlabeled"] == test
    assert data.duplicates.across["validation in unlabeled"] == val


def test_drop_leaves_test_whole() -> None:
    data = Given(TRAIN, TEST, VAL, on_duplicate="drop")
    assert numbers(data.split.train) == [2, 3, 5]
    assert numbers(data.split.val) == [4, 8, 8, 11]
    assert numbers(data.split.test) == numbers(TEST)
    assert data.duplicates.dropped == {"train": 5, "validation": 1}
    assert data.key()["train"] != Given(TRAIN, TEST, VAL).key()["train"]


def test_stop_refuses_and_so_does_a_class_that_drop_would_empty() -> None:
    with pytest.raises(
        UserError, match=r"data\.on_duplicate: found duplicate images: of 5 in test 1"
    ):
        _ = Given(TRAIN, TEST, VAL, on_duplicate="stop").split
    with pytest.raises(UserError, match="drop leaves no image of class 'b' in train"):
        _ = Given(images([1, 2], [0, 1]), images([2, 3], [1, 0]), None, on_duplicate="drop").split
    clean = Given(images(list(range(20)), [0, 1] * 10), None, None, on_duplicate="stop")
    assert len(clean.split.train) + len(clean.split.val) + len(clean.split.test) == 20
    assert not clean.notes


@pytest.mark.parametrize("grouped", [False, True])
def test_carving_keeps_copies_in_one_part(grouped: bool) -> None:
    """40 images, each twice and far apart; or in two groups that share four."""
    copies = [*range(40), *range(40)]
    labels = [i % 2 for i in copies]
    groups = [f"{i // 40} {copies[i] // 4}" for i in range(80)] if grouped else None
    for seed in range(3):
        split = Given(images(copies, labels, groups), None, None, split_seed=seed).split
        parts = [set(numbers(part)) for part in (split.train, split.val, split.test)]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 40
        assert all(parts)


def test_copies_are_shared_out_where_a_class_has_nothing_else() -> None:
    data = Given(images([1] * 10 + list(range(2, 12)), [0] * 10 + [1] * 10), None, None)
    assert all(
        (part.labels == 0).any() for part in (data.split.train, data.split.val, data.split.test)
    )
    assert "carved parts share images" in data.notes[-1]


def test_the_verdict_begins_with_test_images_that_were_trained_on() -> None:
    found = {"across": {"test in train": 18}, "dropped": {}}
    report = made_report(data={**REPORT["data"], "duplicates": found})
    assert verdict(report)[0].startswith("Of the 18 test images, 18 are in train too")
    found["dropped"] = {"train": 18}
    assert verdict(made_report(data={**REPORT["data"], "duplicates": found})) == []


def test_a_folder_whose_test_was_trained_on_as_a_user_sees_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All 18 test images are in train, one of them under the other label; files of 12 bits in 16.

    What is wrong, and what was passed over, stands in the output, the report and the model card.
    How files were read goes into what is shipped.
    """
    draw = np.random.default_rng(0)
    for i in range(40):
        name, other = ("cat", "dog") if i % 2 else ("dog", "cat")
        image = Image.fromarray(draw.integers(0, 4096, (8, 8), dtype=np.uint16))
        image.putpixel((0, 0), 4095)
        places = [f"train/{name}", *([f"test/{other if i == 3 else name}"] if i < 18 else [])]
        for place in places:
            (tmp_path / "photos" / place).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "photos" / place / f"{i:02d}.png")
    (tmp_path / "photos" / "train" / "cat" / "x.heic").write_text("no picture here")
    words = ["model=mlp_to_mlp", *TINY, "data=image_folder", f"data.root={tmp_path / 'photos'}"]
    words += ["data.image_size=8", "data.channels=1", "data.bit_depth=12", "data.limit=null"]
    words += ["stages=[distill]", "loss=label_smoothing", f"output_dir={tmp_path}"]
    assert exit_code("train", *words, "data.on_duplicate=stop") == 2
    assert "data.on_duplicate: found duplicate images" in capsys.readouterr().err
    assert exit_code("train", *words) == 0
    said = capsys.readouterr()
    notes = ["of 18 in test 18 also in train", "under more than one label: 1", "1 .heic"]
    (folder,) = tmp_path.glob("runs/*")
    pages = {page: (folder / page).read_text() for page in PAGES}
    for note in notes:
        assert all(note in text for text in (said.err, *pages.values())), note
    trained = "Of the 18 test images, 18 are in train too"
    for page, text in {"output": said.out, **pages}.items():
        assert trained in " ".join(text.split()), page
    assert exit_code("export", f"run={folder}", "formats=[onnx]") == 0
    first = tmp_path / "photos/train/dog/00.png"
    wanted = np.round(np.asarray(Image.open(first), np.float64) * 255 / 4095)
    for file in (folder / STUDENT, folder / "export" / "student.onnx"):
        pixels = load_model(str(file), "model").read(first)
        assert pixels.flatten().tolist() == wanted.flatten().tolist(), file


def test_carving_takes_linear_time() -> None:
    """320,000 images of 1,000 classes; it used to take 166 s. One class is rare on purpose."""
    count, classes = 320_000, 1000
    draw = torch.Generator().manual_seed(0)
    digests = torch.randint(0, 256, (count, 16), dtype=torch.uint8, generator=draw)
    facts = replace(Facts.blank(count, 1), digests=digests)
    store = PixelStore(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), facts)
    labels = torch.arange(count) % (classes - 1)
    labels[:3] = classes - 1
    every, names = Images(Pixels.whole(store), labels), tuple(map(str, range(classes)))
    started = time.process_time()
    check_counts(every, ["validation", "test"], names)
    rest, test = hold_out(every, 0.2, "test", names, seed=0, least=2)
    train, val = hold_out(rest, 0.1, "validation", names, seed=0)
    assert time.process_time() - started < 3  # 0.8 s by itself on one core
    assert (len(train), len(val), len(test)) == (230_400, 25_600, 64_000)
    assert [int((part.labels == classes - 1).sum()) for part in (train, val, test)] == [1, 1, 1]
