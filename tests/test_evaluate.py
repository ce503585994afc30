"""`kd.evaluate`: a run's nets on its own test part and on other images, and what it refuses."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composed import composed_command
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from kd.data.digits import Digits
from kd.data.images import Images
from kd.data.other_source import unseen
from kd.errors import UserError
from kd.evaluation.evaluation import evaluate, judge, under_corruptions, versus
from kd.evaluation.evaluation_set import of_other
from kd.evaluation.evaluation_text import sentences
from kd.evaluation.requests import Evaluate
from kd.files.evaluation_file import EvaluationRecord
from kd.measure.corruptions import CORRUPTIONS, corrupt
from kd.measure.knn import knn_accuracy
from kd.measure.metrics import ask, summary
from kd.nets.build import normalization_of
from kd.run_commands import command_of, read_request
from kd.runs.reader import open_run
from kd.shape import Shape

UNIT = ((0.0,), (1.0,))
CLASSES = tuple(map(str, range(10)))


def config(run: Path, *overrides: str) -> Evaluate:
    return read_request(
        command_of("evaluate"),
        composed_command("evaluate", f"run={run}", f"output_dir={run.parent}", *overrides),
        set(),
    )


def evaluated(run: Path, *overrides: str) -> tuple[Path, dict[str, Any]]:
    file = evaluate(open_run(run), config(run, *overrides), "python -m kd.evaluate x=1")
    return file, json.loads(file.read_text())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Digits of the run's test and training parts, as files in class folders."""
    split = Digits(test_fraction=0.25, limit=200).split
    for name, part, count in (("test", split.test, 60), ("train", split.train, 30)):
        for i in range(count):
            folder = tmp_path / "photos" / str(int(part.labels[i]))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.pixels[i : i + 1].numpy()[0, 0]).save(folder / f"{name}{i}.png")
    return tmp_path / "photos"


def test_the_run_is_judged_as_in_its_report(finished: Path, tmp_path: Path) -> None:
    file, found = evaluated(finished, f"out={tmp_path}", "knn=5")
    assert found["knn"]["k"] == 5
    assert found["knn"]["accuracy"].keys() == {"teacher", "baseline", "student"}
    assert min(found["knn"]["accuracy"].values()) > 0.5, "chance is a tenth"
    assert "Accuracy of the 5 nearest of " in file.with_suffix(".md").read_text()
    report = json.loads((finished / "report.json").read_text())
    assert file == tmp_path / "evaluation.json"
    for model, before in zip(found["models"], report["models"], strict=True):
        assert model["role"] == before["role"]
        assert {key: model["test"][key] for key in before["test"]} == before["test"]
    gain = {key: report["comparison"][key] for key in ("gain", "gain_ci95", "p_value")}
    pair = found["paired"][0]
    assert (pair["first"], pair["second"]) == ("student", "baseline")
    assert {
        "gain": pair["difference"],
        "gain_ci95": pair["difference_ci95"],
        "p_value": pair["p_value"],
    } == gain
    assert [(each["first"], each["second"]) for each in found["paired"][1:]] == [
        ("student", "teacher"),
        ("baseline", "teacher"),
    ]
    assert found["data"]["images"] == 449
    teacher = found["models"][0]["test"]
    assert (teacher["agreement"], teacher["kl"]) == (1.0, 0.0)
    assert "corruptions" not in found
    text = (tmp_path / "evaluation.md").read_text()
    assert "python -m kd.evaluate x=1" in text
    assert f"{100 * teacher['accuracy']:.2f}" in text


def test_the_temperature_is_fitted_on_validation(finished: Path, tmp_path: Path) -> None:
    _, found = evaluated(finished, f"out={tmp_path}")
    run = open_run(finished)
    split = run.data().split
    net = run.net("student")
    logits = ask(net, split.val, normalization_of(net, ((0.0,), (1.0,)))).double()
    calibrated = found["models"][2]["calibrated"]
    grid = calibrated["temperature"] * np.linspace(0.9, 1.1, 201)
    losses = [float(torch.nn.functional.cross_entropy(logits / t, split.val.labels)) for t in grid]
    assert abs(int(np.argmin(losses)) - 100) <= 1
    test = (
        ask(net, split.test, normalization_of(net, ((0.0,), (1.0,)))).double()
        / calibrated["temperature"]
    )
    after = summary(test, split.test.labels)
    assert calibrated["ece"] == pytest.approx(after.ece)
    assert calibrated["nll"] == pytest.approx(after.nll)
    assert found["calibrated_on"]["validation"] == len(split.val)
    record = EvaluationRecord.model_validate_json(json.dumps(found))
    assert not any("trial" in each for each in sentences(record))
    assert "is a trial" in sentences(record.model_copy(update={"trial": True}))[1]
    omitted = record.data.model_copy(update={"omitted": ["3", "5"]})
    told = sentences(record.model_copy(update={"data": omitted}))
    assert "Never shown to baseline and student: 3, 5." in told
    for images, caution in ((len(split.val), False), (50, False), (49, True), (3, True)):
        on = record.calibrated_on.model_copy(update={"validation": images})
        said = sentences(record.model_copy(update={"calibrated_on": on}))
        (line,) = [each for each in said if "temperatures were fitted" in each]
        assert f"{images} validation images" in line
        assert ("too few: take them as a guess" in line) == caution


def test_test_time_flips_are_reported_beside_the_plain_accuracy(
    finished: Path, tmp_path: Path
) -> None:
    _, plain = evaluated(finished, f"out={tmp_path / 'plain'}")
    _, found = evaluated(finished, f"out={tmp_path}", "flips=true")
    run = open_run(finished)
    test = run.data().split.test
    mirrored = Images(test.pixels[:].flip(3), test.labels)
    for before, model in zip(plain["models"], found["models"], strict=True):
        net = run.net(model["role"])
        one, other = (ask(net, each, normalization_of(net, UNIT)) for each in (test, mirrored))
        right = ((one + other).argmax(1) == test.labels).double().mean()
        assert model["flipped"]["accuracy"] == pytest.approx(float(right))
        assert model["test"] == before["test"]
        assert before["flipped"] is None
        assert f"{100 * float(right):.2f}" in (tmp_path / "evaluation.md").read_text()
    assert any(m["flipped"]["accuracy"] != m["test"]["accuracy"] for m in found["models"])
    assert "flips" in (tmp_path / "evaluation.md").read_text()
    assert "flips" not in (tmp_path / "plain" / "evaluation.md").read_text()


def test_judge_against_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 300, 4, generator=generator)
    logits[:, 3] -= 100  # never chosen
    labels = torch.randint(0, 3, (300,), generator=generator)
    labels[labels == 2] = 3  # so 2 is never true
    found = judge(logits, labels, teacher)
    chosen = logits.argmax(1)
    for c, each in enumerate(found.per_class):
        hits, true, said = (
            int(((chosen == c) & (labels == c)).sum()),
            int((labels == c).sum()),
            int((chosen == c).sum()),
        )
        assert each.support == true
        assert each.precision == (pytest.approx(hits / said) if said else None)
        assert each.recall == (pytest.approx(hits / true) if true else None)
    assert found.per_class[3].precision is None
    assert found.per_class[2].recall is None
    t, s = teacher.double().numpy(), logits.double().numpy()
    log_t, log_s = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (t, s))
    assert found.kl == pytest.approx((np.exp(log_t) * (log_t - log_s)).sum(1).mean(), abs=1e-9)
    assert judge(logits, labels, None).kl is None


def test_near_neighbours_vote_by_their_cosine() -> None:
    draw = torch.Generator().manual_seed(0)
    known, asked = torch.randn(60, 5, generator=draw), torch.randn(40, 5, generator=draw)
    labels, truth = torch.arange(60) % 3, torch.arange(40) % 3
    vote = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    wanted = vote.fit(known.numpy(), labels.numpy()).score(asked.numpy(), truth.numpy())
    assert knn_accuracy((known, labels), (3 * asked, truth), 20) == pytest.approx(wanted)
    assert knn_accuracy((known, labels), (known, labels), 1) == 1


def test_versus_counts_what_one_alone_gets_right() -> None:
    labels = torch.zeros(20, dtype=torch.int64)
    first = torch.tensor([[1.0, 0]] * 12 + [[0, 1.0]] * 8)
    second = torch.tensor([[1.0, 0]] * 5 + [[0, 1.0]] * 12 + [[1.0, 0]] * 3)
    found = versus("a", "b", {"a": first, "b": second}, labels)
    assert (found.only_first, found.only_second) == (7, 3)
    assert found.difference == pytest.approx(0.2)
    assert found.p_value == pytest.approx(2 * sum(math.comb(10, i) for i in range(4)) / 2**10)


def test_other_images_of_the_same_classes(finished: Path, photos: Path, tmp_path: Path) -> None:
    out = f"out={tmp_path}"
    file, found = evaluated(finished, "data=image_folder", f"data.root={photos}", out)
    assert file.name == "evaluation_image_folder_photos.json"
    # Training images are left out; the rest is of the test part, at the nets' size.
    assert (found["data"]["left_out"], found["data"]["images"]) == (30, 60)
    assert found["calibrated_on"]["validation"] == 135
    test = Digits(test_fraction=0.25, limit=200).split.test
    net = open_run(finished).net("student")
    logits = ask(net, test.at(range(60)), normalization_of(net, ((0.0,), (1.0,))))
    right = (logits.argmax(1) == test.labels[:60]).double().mean()
    assert found["models"][2]["test"]["accuracy"] == pytest.approx(float(right))

    again, _ = evaluated(finished, "data=image_folder", f"data.root={photos}", out)
    assert again == file  # the same images: in its place
    (photos / "3" / "new.png").write_bytes(next((photos / "4").glob("test*.png")).read_bytes())
    other, _ = evaluated(finished, "data=image_folder", f"data.root={photos}", out)
    assert other.name == "evaluation_image_folder_photos_2.json"
    other.write_text(json.dumps({**found, "schema": 99}))  # a later kd's, which is kept
    third, _ = evaluated(finished, "data=image_folder", f"data.root={photos}", out)
    assert third.name == "evaluation_image_folder_photos_3.json"
    assert file.exists()


def test_other_images_are_read_as_the_runs_were(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    """The photographs again, as 12 bits in 16: white is at level 4095."""
    for file in photos.glob("*/*.png"):
        levels = np.round(np.asarray(Image.open(file), np.float64) * 4095 / 255)
        Image.fromarray(levels.astype(np.uint16)).save(file)
    run = open_run(finished)
    run.report.data.reading["bit_depth"] = 12
    words = ("data=image_folder", f"data.root={photos}", f"out={tmp_path}")
    for typed, left_out in ((set(), 30), ({"data", "data.bit_depth"}, 0)):  # 16 in conf
        asked = read_request(
            command_of("evaluate"),
            composed_command("evaluate", f"run={finished}", f"output_dir={tmp_path}", *words),
            typed,
        )
        found = json.loads(evaluate(run, asked, "").read_text())["data"]
        assert found["left_out"] == left_out  # found by their pixels


def test_labels_go_by_the_names_of_classes(photos: Path) -> None:
    node = {"_target_": "kd.data.image_folder.ImageFolder", "root": str(photos)}
    backwards = tuple(reversed(CLASSES))
    straight, turned = (
        of_other(node, names, Shape(1, 8, 10), None).images for names in (CLASSES, backwards)
    )
    assert straight.pixels.shape == (90, 1, 8, 8)
    assert torch.equal(turned.labels, 9 - straight.labels)


def test_unseen_are_those_with_other_pixels(digits: Digits) -> None:
    train = digits.split.train
    left = unseen(train.at(range(20)), train.at(range(10)), train.at([15]))
    assert torch.equal(
        left.pixels[0:9], train.pixels[torch.tensor([10, 11, 12, 13, 14, 16, 17, 18, 19])]
    )
    assert len(left) == 9


def test_other_classes_and_sizes_are_refused(photos: Path, finished: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos / "7")
    run = open_run(finished)
    with pytest.raises(
        UserError,
        match=r"data: 9 classes \(0, .*9\), but the run's nets are for 10 classes \(0, ",
    ):
        evaluate(
            run, config(finished, "data=image_folder", f"data.root={photos}", f"out={tmp_path}"), ""
        )
    (photos / "3").rename(photos / "drei")
    (photos / "8").rename(photos / "7")
    with pytest.raises(UserError, match="accepted is a data set with the same classes, by name"):
        of_other(
            {"_target_": "kd.data.image_folder.ImageFolder", "root": str(photos)},
            CLASSES,
            Shape(1, 8, 10),
            None,
        )
    with pytest.raises(
        UserError, match=r"its images are 1x8x8, the run's nets take 3x32x32; .*data=image_folder"
    ):
        of_other({"_target_": "kd.data.digits.Digits"}, CLASSES, Shape(3, 32, 10), None)


def test_nothing_is_left_of_what_the_nets_have_seen(finished: Path, photos: Path) -> None:
    for file in photos.glob("*/test*.png"):
        file.unlink()
    own = open_run(finished).data()
    node = {"_target_": "kd.data.image_folder.ImageFolder", "root": str(photos)}
    with pytest.raises(UserError, match="the run's nets were trained on all of these images"):
        of_other(node, CLASSES, Shape(1, 8, 10), own)


def test_the_data_of_a_run_that_an_earlier_kd_made(finished: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    report = json.loads((finished / "report.json").read_text())
    report["config"]["data"]["cache"] = None  # accepted then
    (old / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"by this version of kd; name the data anew.*data.cache"):
        open_run(old).data()


def test_a_run_that_was_moved_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "a" / "moved"
    shutil.copytree(finished, moved)
    report = json.loads((moved / "report.json").read_text())
    report["config"]["output_dir"] = str(tmp_path / "nowhere")
    (moved / "report.json").write_text(json.dumps(report))
    file, found = evaluated(moved)
    assert file == moved / "evaluation.json"
    assert [model["role"] for model in found["models"]] == ["student"]
    assert set(found["missing"]) == {"teacher", "baseline"}
    assert found["models"][0]["test"]["kl"] is None
    assert found["models"][0]["test"]["accuracy"] == report["models"][2]["test"]["accuracy"]
    assert "No teacher" in capsys.readouterr().out
    (moved / "student.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"(?s)the weights of the teacher.*the run has no student.safetensors"
    ):
        evaluated(moved)


def test_corruptions_are_shown_to_all_nets(finished: Path, tmp_path: Path) -> None:
    _, found = evaluated(
        finished, f"out={tmp_path}", "corruptions=[jpeg,noise]", "severities=[1,5]"
    )
    under = found["corruptions"]
    assert list(under["accuracy"]["student"]) == ["jpeg", "noise"]
    run = open_run(finished)
    test, net = run.data().split.test, run.net("student")
    pixels = torch.from_numpy(corrupt(test.pixels[:].numpy(), np.arange(len(test)), "noise", 5, 0))
    mean, std = (
        torch.tensor(each).view(1, -1, 1, 1) for each in normalization_of(net, ((0.0,), (1.0,)))
    )
    with torch.no_grad():
        right = (net((pixels / 255 - mean) / std).argmax(1) == test.labels).double().mean()
    assert under["accuracy"]["student"]["noise"]["5"] == pytest.approx(float(right))
    values = [
        under["accuracy"]["student"][name][level]
        for name in ("jpeg", "noise")
        for level in ("1", "5")
    ]
    assert under["mean"]["student"] == pytest.approx(sum(values) / 4)
    assert "## Corruptions" in (tmp_path / "evaluation.md").read_text()


def test_corruptions_need_gray_or_colour(digits: Digits) -> None:
    images = digits.split.test
    two = type(images)(images.pixels[:].repeat(1, 2, 1, 1), images.labels)
    with pytest.raises(UserError, match="corruptions: the images have 2 channels"):
        under_corruptions({}, two, ["noise"], [1], 0)


def test_what_may_stand_for_corruptions(tmp_path: Path) -> None:
    def asked(value: str) -> list[str]:
        names: list[str] = config(tmp_path, f"corruptions={value}").corruptions
        return names

    assert asked("true") == list(CORRUPTIONS)
    assert asked("false") == []
    assert asked("blur") == ["blur"]
    with pytest.raises(
        UserError, match=r"corruptions: found 'nois'; accepted are true, .* did you mean 'noise'"
    ):
        asked("[nois]")
    with pytest.raises(UserError, match=r"severities.*found 6"):
        config(tmp_path, "severities=[6]")


def test_help_has_examples() -> None:
    words = [sys.executable, "-m", "kd.evaluate", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "python -m kd.evaluate run=outputs/runs/RUN corruptions=true" in done.stdout
    assert "  severities=" in done.stdout
