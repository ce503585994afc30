"""`teacher.data`: another source for the teacher's training, with the run's classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composed import TINY, composed
from PIL import Image

from kd.config.schema import check
from kd.config.teacher_data import teacher_source
from kd.data.base import Source
from kd.data.digits import Digits
from kd.errors import UserError
from kd.evaluation.evaluation_set import of_other
from kd.files.report_file import read_report
from kd.runs.run import run
from kd.shape import Shape
from kd.stages.chain import chain_of
from kd.stages.stage import make_stage

FOLDER = "kd.data.image_folder.ImageFolder"
DIGITS = "kd.data.digits.Digits"
BACKWARDS = f"{__name__}.Backwards"


class Backwards(Digits):
    """The digits with their classes in reverse order."""

    def read(self) -> Source:
        source = super().read()
        assert source.test is None
        train = source.train.with_labels(9 - source.train.labels)
        return Source(train, None, source.classes[::-1])


def folder(root: Path, classes: str, numbers: range) -> str:
    """Gray images in class folders, one per number and class; all differ."""
    for i in numbers:
        for c, name in enumerate(classes):
            (root / name).mkdir(parents=True, exist_ok=True)
            level = np.full((8, 8), 20 * i + 5 * c, np.uint8)
            Image.fromarray(level).save(root / name / f"{i}.png")
    return str(root)


@pytest.mark.parametrize(
    ("own", "asked", "wanted"),
    [
        (
            {"_target_": FOLDER, "root": "a", "image_size": 8, "labels": 3, "limit": 5},
            "b",
            {"_target_": FOLDER, "root": "b", "image_size": 8},
        ),
        (
            {"_target_": DIGITS, "root": "a", "views": 2},
            "b",
            {"_target_": FOLDER, "root": "b", "views": 2},
        ),
        (
            {"_target_": DIGITS, "root": "a", "limit": 5, "omit": ["3"]},
            {"split_seed": 7},
            {"_target_": DIGITS, "root": "a", "split_seed": 7},
        ),
        ({"_target_": FOLDER, "root": "a"}, {"_target_": DIGITS}, {"_target_": DIGITS}),
    ],
)
def test_what_it_may_say(own: dict[str, Any], asked: Any, wanted: dict[str, Any]) -> None:
    assert teacher_source(own, asked) == wanted


@pytest.mark.slow
def test_a_source_of_conf_is_composed_with_its_own_keys() -> None:
    words = ("data=digits", "data@teacher.data=chest_xray", "teacher.data.root=x")
    node = check(composed(*words)).data["teacher_data"]
    assert (node["_target_"], node["root"]) == ("kd.data.chest_xray.ChestXRay", "x")


@pytest.mark.slow
def test_classes_are_matched_by_name() -> None:
    data = Digits(limit=300, labels=20, teacher_data={"_target_": BACKWARDS})
    seen, plain = data.for_stage("all"), Digits()
    assert seen.classes == data.classes
    by_pixels = {
        digest.tobytes(): int(label)
        for part in (plain.split.train, plain.split.val, plain.split.test)
        for digest, label in zip(part.pixels.facts.digests.numpy(), part.labels, strict=True)
    }
    for part in (seen.split.train, seen.split.val):
        digests = part.pixels.facts.digests.numpy()
        assert [by_pixels[each.tobytes()] for each in digests] == part.labels.tolist()
    assert len(seen.split.train) > 300  # the limit is the run's
    assert data.for_stage("transfer").split.train.labels.ge(0).sum() == 20


@pytest.mark.parametrize(
    ("classes", "node", "wanted"),
    [
        ("abd", {}, r"teacher.data: 3 classes \(a, b, d\), but .* 3 classes \(a, b, c\)"),
        ("ab", {}, r"teacher.data: 2 classes \(a, b\)"),
        ("abc", {"labels": 6}, "teacher.data.labels: found 6, but a teacher sees all"),
        ("abc", {"_target_": DIGITS}, "teacher.data: 10 classes"),
        ("abc", {"root": "/nowhere"}, r"^teacher\.data\.root: no folder /nowhere"),
        ("a", {}, r"^teacher\.data\.root: .* must hold a folder of images for each of two"),
    ],
)
def test_what_does_not_fit_is_one_message(
    classes: str, node: dict[str, Any], wanted: str, tmp_path: Path
) -> None:
    from kd.data.image_folder import ImageFolder

    root = folder(tmp_path / "own", "abc", range(8))
    other = folder(tmp_path / "other", classes, range(8))
    source = {"_target_": FOLDER, "root": other, **node}
    if "_target_" in node:
        source = node
    data = ImageFolder(root, image_size=8, channels=1, teacher_data=source)
    with pytest.raises(UserError, match=wanted):
        data.for_stage("all")


def test_images_of_another_size_are_refused() -> None:
    data = Digits(teacher_data={"_target_": f"{__name__}.Larger"})
    with pytest.raises(UserError, match=r"teacher.data: its images are 1x16x16, .* take 1x8x8"):
        data.for_stage("all")


class Larger(Digits):
    """The digits at twice their size."""

    def read(self) -> Source:
        from kd.data.base import Images

        source = super().read()
        pixels = source.train.pixels[:].repeat_interleave(2, 2).repeat_interleave(2, 3)
        return Source(Images(pixels, source.train.labels), None, source.classes)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            ("teacher.path=a.safetensors", "teacher.data=photos"),
            "teacher.data: found 'photos', but the weights in teacher.path are taken as they are",
        ),
        (
            ("+teacher.members=[{data: photos}]",),
            r"teacher.members\[0\].data: found 'photos'; all members have the images of",
        ),
    ],
)
def test_a_teacher_that_does_not_train_on_it(words: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        chain_of(check(composed(*words)))


@pytest.mark.parametrize("way", ["warn", "drop", "stop"])
def test_test_images_among_the_teachers(way: Any) -> None:
    # Except for the carved parts the images are equal, so most of the run's test part is among
    # them.
    data = Digits(on_duplicate=way, teacher_data={"_target_": DIGITS, "split_seed": 1})
    test = {each.tobytes() for each in data.split.test.pixels.facts.digests.numpy()}
    train = Digits(split_seed=1).split.train.pixels.facts.digests.numpy()
    both = sum(each.tobytes() in test for each in train)
    assert both > 100
    said = rf"of the {len(train):,} training images of teacher.data, {both} are in test too"
    if way == "stop":
        with pytest.raises(UserError, match=said):
            data.for_stage("all")
        return
    left = len(data.for_stage("all").split.train)
    assert left == (len(train) if way == "warn" else len(train) - both)
    assert any(said in note for note in data.notes)


@pytest.mark.slow
def test_only_those_that_learn_from_it_have_another_key() -> None:
    keys = []
    for words in ((), ("teacher.data={split_seed: 1}",)):
        config = check(composed(*TINY, *words)).resolve()
        data = Digits(test_fraction=0.25, limit=200, teacher_data=config.data.get("teacher_data"))
        plans = chain_of(config)
        keys.append([make_stage(plan, config, data, {}).key for plan in plans[:2]])
    (teacher, baseline), (other_teacher, other_baseline) = keys
    assert teacher != other_teacher
    assert baseline == other_baseline


@pytest.mark.slow
def test_a_run_with_a_folder_for_the_teacher(tmp_path: Path) -> None:
    own = folder(tmp_path / "own", "ab", range(8))
    other = folder(tmp_path / "other", "ab", range(12))
    words = (
        *(each for each in TINY if "limit" not in each and "batch" not in each),
        *("data=image_folder", f"data.root={own}", "data.image_size=8", "data.channels=1"),
        *("data/augment=none", f"teacher.data={other}", "data.on_duplicate=drop"),
        *("batch_size=4", "teacher.batch_size=4", "name=test", f"output_dir={tmp_path}"),
    )
    place = run(check(composed(*words)), "a test")
    found = read_report(place / "report.json")
    data, said = found.data, (place / "report.md").read_text()
    # 24 pictures: 5 of test, 2 of validation, 17 left, less those in the run's test part.
    assert data.test == 3
    assert data.teacher
    assert data.teacher.train + data.teacher.val <= 24 - 5
    assert f"the teacher learned from {data.teacher.train} training images of" in said
    node = {"_target_": FOLDER, "root": other}
    from kd.runs.reader import open_run

    own_data = open_run(place).data()
    kept = of_other(node, ("a", "b"), Shape(1, 8, 2), own_data)
    seen = own_data.for_stage("all").split
    digests = [
        {each.tobytes() for each in part.pixels.facts.digests.numpy()}
        for part in (kept.images, seen.train, seen.val)
    ]
    assert digests[0].isdisjoint(digests[1] | digests[2])
    assert torch.equal(kept.images.labels.unique(), torch.tensor([0, 1]))
