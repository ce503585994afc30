"""Images with several labels or none: losses, metrics, parts, refusals, and a run to its files."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composed import composed, composed_command
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from kd.config.construct import construct
from kd.config.schema import Config, check
from kd.data.base import DataModule
from kd.data.label_file import read_label_file
from kd.data.parts import strata
from kd.errors import UserError
from kd.evaluation.evaluation import evaluate
from kd.losses.mld import mld_loss
from kd.measure.label_metrics import interval, resample
from kd.measure.metrics import paired_comparison, summary
from kd.measure.operating_point import by_f1
from kd.reports.label_doubts import rank_single_labels
from kd.run_commands import command_of, read_request
from kd.runs.reader import open_run
from kd.runs.run import run
from kd.shipping.predictions import predict
from kd.tasks.data import TaskData
from kd.training.label_loss import accuracy, label_loss
from kd.training.mean_average_precision import MeanAveragePrecision

LOGITS = torch.tensor([[2.0, -1.0], [0.5, 0.3], [-2.0, 1.0]])
LABELS = torch.tensor([[1, 0], [1, 0], [0, 0]], dtype=torch.int8)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_the_losses_are_means_over_images_and_classes() -> None:
    def bce(z: float, y: int, gamma: float = 0) -> float:
        p = sigmoid(z) if y else 1 - sigmoid(z)
        return -((1 - p) ** gamma) * math.log(p)

    pairs = list(zip(LOGITS.flatten().tolist(), LABELS.flatten().tolist(), strict=True))
    unlabelled = torch.cat([LABELS, torch.full((1, 2), -1, dtype=torch.int8)])
    logits = torch.cat([LOGITS, torch.ones(1, 2)])
    for gamma in (0, 2):
        wanted = sum(bce(z, y, gamma) for z, y in pairs) / 6
        found = label_loss(logits, unlabelled, focal_gamma=gamma or None)
        assert float(found) == pytest.approx(wanted, rel=1e-5)
    right, count = accuracy(logits, unlabelled)
    assert (float(right), float(count)) == (pytest.approx(1 / 3), 3)

    teacher, temperature = LOGITS.flip(0), 3.0
    kl = 0.0
    for s, t in zip(LOGITS.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        p, q = sigmoid(t / temperature), sigmoid(s / temperature)
        kl += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = mld_loss(LOGITS, teacher, temperature)
    assert float(found) == pytest.approx(temperature**2 * kl / 6, rel=1e-4)
    assert float(mld_loss(LOGITS, LOGITS)) == 0


def test_metrics_by_hand() -> None:
    found = summary(LOGITS, LABELS, teacher=LOGITS.flip(0))
    assert found.accuracy == pytest.approx(1 / 3), "all labels of an image must be right"
    assert found.agreement == pytest.approx(1 / 3)
    # The second class has no image: means are over the first, whose two images rank first
    assert found.map == found.f1_macro == found.auroc == 1
    assert found.f1_micro == pytest.approx(2 * 2 / (2 * 2 + 2 + 0)), "two right, two too many"
    questions = [-math.log(sigmoid(z)) for z in (2, 1, 0.5, -0.3, 2, -1)]
    assert found.nll == pytest.approx(sum(questions) / 6)
    three = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    ranks = summary(three, torch.tensor([[0], [1], [0], [1]]))
    assert ranks.map == pytest.approx((1 / 1 + 2 / 3) / 2), "precision at each of its images"
    gain = paired_comparison(LOGITS, -LOGITS, LABELS)
    assert gain.gain == pytest.approx(1 / 3)


def test_intervals_are_of_the_same_metrics() -> None:
    """Against scikit-learn, with each image as often as the bootstrap drew it."""
    draw = torch.Generator().manual_seed(0)
    labels = (torch.rand(40, 3, generator=draw) < 0.4).to(torch.int8)
    logits = (torch.randn(40, 3, generator=draw) + labels).mul(2).round()  # ties
    found = resample(logits, logits > 1, labels)
    often = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), 1)[0]
    again = torch.from_numpy(np.repeat(np.arange(40), often))
    y, z = labels[again].numpy(), logits[again].numpy()
    assert found.map[0] == pytest.approx(average_precision_score(y, z, average="macro"))
    assert found.f1_macro[0] == pytest.approx(f1_score(y, z > 1, average="macro"))
    assert found.f1_micro[0] == pytest.approx(f1_score(y, z > 1, average="micro"))
    low, high = interval(found.map) or (1.0, 0.0)
    assert (found.map < low).mean() == pytest.approx(0.025, abs=0.002)
    assert (found.map > high).mean() == pytest.approx(0.025, abs=0.002)
    metric = MeanAveragePrecision()
    for part in (slice(0, 25), slice(25, 40)):
        metric.update(logits[part], labels[part])
    whole = average_precision_score(labels.numpy(), logits.numpy(), average="macro")
    assert float(metric.compute()) == pytest.approx(whole, rel=1e-6)
    none = MeanAveragePrecision()
    none.update(logits, torch.zeros_like(labels))
    assert math.isnan(float(none.compute()))
    scores, positive = logits[:, 0].double(), labels[:, 0] > 0
    best = max(f1_score(positive, scores >= t) for t in scores.unique())
    assert f1_score(positive, scores >= by_f1(scores, positive)) == pytest.approx(best)


def test_the_label_that_is_surest_to_be_wrong_stands_for_its_image() -> None:
    logits = torch.tensor([[2.0, -3.0], [-1.0, 4.0], [5.0, 5.0], [9.0, 9.0]])
    labels = torch.tensor([[1, 1], [1, 0], [1, 1], [-1, -1]], dtype=torch.int8)
    found = rank_single_labels(logits, labels)
    assert [(place, label) for place, label, _, _ in found] == [(1, 1), (0, 1)]
    assert found[0][2:] == pytest.approx((1 - sigmoid(4), sigmoid(4))), "has it not, says yes"
    assert found[1][2:] == pytest.approx((sigmoid(-3), 1 - sigmoid(-3))), "has it, says no"


def test_images_are_stratified_by_their_rarest_label() -> None:
    labels = torch.zeros(40, 3, dtype=torch.int8)
    labels[:20, 0] = 1
    labels[10:18, 1] = 1
    labels[0, 2] = 1  # too few for a part of its own
    found = strata(labels)
    assert found[10:18].tolist() == [1] * 8
    assert found[20:].tolist() == [3] * 20
    assert int(found[0]) == 3, "with the largest"
    assert torch.equal(strata(torch.tensor([2, 0])), torch.tensor([2, 0]))


def test_cells_with_several_labels(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("image,tags\na,cat|dog\nb,\nc,dog\n")
    rows, classes = read_label_file(file, multilabel=True)
    assert classes == ("cat", "dog")
    assert [each.labels for each in rows] == [(0, 1), (), (1,)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright upper halves are `top`, bright left halves `left`; a third of the images has both."""
    root = tmp_path_factory.mktemp("shapes")
    draw = np.random.default_rng(0)
    lines = ["image,top,left"]
    for i in range(90):
        top, left = int(draw.random() < 0.5), int(draw.random() < 0.5)
        pixels = draw.integers(0, 90, (8, 8, 3), dtype=np.uint8)
        pixels[:4] += np.uint8(120 * top)
        pixels[:, :4] += np.uint8(40 * left)
        Image.fromarray(pixels).save(root / f"{i}.png")
        lines.append(f"{i}.png,{top},{left}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def evaluation(run_folder: Path, out: Path, *more: str) -> Any:
    out.mkdir(exist_ok=True)
    words = (f"run={run_folder}", f"output_dir={out}", f"out={out}", *more)
    asked = read_request(command_of("evaluate"), composed_command("evaluate", *words), set())
    return json.loads(evaluate(open_run(run_folder), asked, "a test").read_text())


def source(images: Path) -> list[str]:
    return ["data=image_folder", f"data.root={images}", "data.label_file=labels.csv"]


def config(images: Path, output: Path, *more: str) -> Config:
    words = source(images)
    words += ["data.task=multilabel", "data.image_size=8", "teacher=mlp", "student=mlp"]
    words += ["loss=mld", "epochs=2", "teacher.epochs=2", "batch_size=32", "teacher.batch_size=32"]
    words += ["teacher.net.hidden=[16]", "student.net.hidden=[8]", f"output_dir={output}"]
    return check(composed(*words, "data/augment=none", *more))


@pytest.mark.slow
def test_what_does_not_go_with_it_is_one_message(images: Path, tmp_path: Path) -> None:
    words = ["loss=kd", "data.sampler=balanced", "label_smoothing=0.1"]
    with pytest.raises(UserError) as refused:
        run(config(images, tmp_path, *words), "")
    for said in ("loss.terms.kd.loss", "loss=mld", "data.sampler: accepted is null"):
        assert said in str(refused.value)
    assert "label_smoothing: accepted is 0" in str(refused.value)
    data: DataModule = construct(config(images, tmp_path).data, "data")
    with pytest.raises(UserError, match=r"accepted by kd\.incremental is multiclass"):
        TaskData(data, [(0,), (1,)])
    with pytest.raises(UserError, match=r"multilabel needs data\.label_file"):
        construct(config(images, tmp_path, "data.label_file=null").data, "data")


@pytest.mark.slow
def test_a_run_to_its_predictions(images: Path, tmp_path: Path) -> None:
    made = config(images, tmp_path, "data.labels=40", "name=several", "pictures=true")
    folder = run(made, "a test")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert report["data"]["labels"] == 40
    student = report["models"][-1]["test"]
    assert {*student} >= {"map", "f1_macro", "f1_micro"}
    assert f"mAP {100 * student['map']:.1f} %" in (folder / "report.md").read_text()
    assert report["teaching"] is None
    assert report["doubts"]["most"][0]["present"] in (True, False)
    assert report["models"][-1]["history"].keys() >= {"val/map", "val/loss"}
    html = (folder / "report.html").read_text()
    for said in ("Labels that the teacher doubts", "How far their confidence", "mAP, %"):
        assert said in html
    evaluated = evaluation(folder, tmp_path / "evaluated", "flips=true", "corruptions=[noise]")
    before = report["models"][-1]["test"]
    (model,) = (each for each in evaluated["models"] if each["role"] == "student")
    assert {name: model["test"][name] for name in before} == before
    assert len(model["labels"]["tuned"]["per_class"]) == 2
    low, high = model["labels"]["map_ci95"]
    assert low <= before["map"] <= high
    text = (tmp_path / "evaluated" / "evaluation.md").read_text()
    assert "## Thresholds" in text
    assert "too few: take the thresholds of " in text
    assert "in mAP: " in text
    assert "confusions" not in text
    point = "operating_point.sensitivity=0.9"
    with pytest.raises(UserError, match="accepted is one of the classes, top, left"):
        evaluation(folder, tmp_path / "evaluated", point)
    found = evaluation(folder, tmp_path / "evaluated", point, "operating_point.positive=left")
    assert found["operating_point"]["models"]["student"]["validation"]["sensitivity"] >= 0.9
    with pytest.raises(UserError, match=r"knn: found 3, but with data\.task=multilabel"):
        evaluation(folder, tmp_path / "evaluated", "knn=3")
    turned = tmp_path / "turned.csv"  # the classes in another order
    lines = [line.split(",") for line in (images / "labels.csv").read_text().split()]
    turned.write_text("\n".join(f"{file},{left},{top}" for file, top, left in lines))
    same = (*source(images), "data.image_size=8")
    other = (*same, f"data.label_file={turned}", "data.task=multilabel")
    found = evaluation(folder, tmp_path / "evaluated", *other)
    assert (found["data"]["images"], found["data"]["left_out"]) == (18, 72)
    assert found["models"][-1]["test"]["map"] == pytest.approx(before["map"])
    turned.write_text("\n".join(f"{file},{('left', 'top')[top == '1']}" for file, top, _ in lines))
    turned.write_text(turned.read_text().replace("image,left", "image,label"))
    with pytest.raises(UserError, match=r"data\.task: found multiclass; accepted is multilabel"):
        evaluation(folder, tmp_path / "evaluated", *same, f"data.label_file={turned}")
    data: DataModule = construct(made.data, "data")
    assert data.split.test.labels.shape == (18, 2)
    out = tmp_path / "a.csv"
    predict(str(folder), [images / "0.png", images / "1.png"], str(out), device="cpu")
    for row in csv.DictReader(out.open()):
        shares = {name: float(row[name]) for name in ("top", "left")}
        assert row["class"] == "|".join(name for name, p in shares.items() if p > 0.5)
