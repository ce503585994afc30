"""Value of a teacher's soft labels: measures by hand, warnings, and where they appear."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import loss_node, tiny

import kd.stages.result
from kd.config.schema import check
from kd.files.report_file import read_report
from kd.reports.run_report import verdict
from kd.runs.run import run
from kd.shape import Shape
from kd.teachers.diagnosis import TeacherDiagnosis, concerns
from kd.training.loss_spec import read_loss
from kd.training.objective import Objective

LOGITS = [[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]]
LABELS = [0, 2]
VIEWS = [[[1.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]]]
GOOD = {"accuracy": 0.9, "entropy": 0.5, "label_probability": 0.8, "instability": 0.1}


def softmax(z: list[float], t: float) -> list[float]:
    e = [math.exp(x / t) for x in z]
    return [x / sum(e) for x in e]


@pytest.mark.parametrize("t", [1.0, 3.0])
def test_measures(t: float) -> None:
    seen = [[0.3, 0.1, 0.0]]
    found = TeacherDiagnosis(
        *(torch.tensor(each) for each in (LOGITS, LABELS, VIEWS, [1], seen)),
    ).at(t)
    p = softmax(seen[0], t)
    a, b = softmax(VIEWS[0][0], t), softmax(VIEWS[1][0], t)
    divergence = [
        sum(x * math.log(x / y) for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a))
    ]
    assert found == pytest.approx(
        {
            "accuracy": 0.5,
            "entropy": -sum(x * math.log(x) for x in p),
            "label_probability": (a[1] + b[1]) / 2,
            "instability": sum(divergence) / 2,
        }
    )


@pytest.mark.parametrize(
    ("changed", "baseline", "words"),
    [
        ({}, 0.8, None),
        ({}, None, None),
        ({"accuracy": 0.7}, 0.8, "teacher.epochs"),
        ({"accuracy": 0.7}, None, None),
        ({"entropy": 0.01}, 0.8, "raise the temperature"),
        ({"instability": 1.0}, 0.8, "lower alpha, augment less"),
    ],
)
def test_concerns(changed: dict[str, float], baseline: float | None, words: str | None) -> None:
    found = concerns(GOOD | changed, 10, baseline)
    assert len(found) == (words is not None)
    assert not words or words in found[0]


@pytest.mark.parametrize(
    ("method", "overrides", "expected"),
    [
        ("kd", ["temperature=3"], [3, 3]),
        ("kd", ["temperature={schedule: linear, start: 8, end: 2}"], [8, 2]),
        ("mse_logits", [], [1, 1]),
        ("dkd", [], [4, 4]),
        ("label_smoothing", [], [1, 1]),
    ],
)
def test_temperature_of_the_soft_labels(
    method: str, overrides: list[str], expected: list[float]
) -> None:
    objective = Objective(read_loss(loss_node(method, *overrides)), Shape(1, 8, 10))
    assert [objective.temperature(0.0), objective.temperature(1.0)] == expected


def rows(folder: Path, role: str) -> list[dict[str, float]]:
    report = json.loads((folder / "report.json").read_text())
    key = next(model["stage"] for model in report["models"] if model["role"] == role)
    found: list[dict[str, float]] = json.loads(
        (folder.parents[1] / "store" / key / "stage.json").read_text()
    )["history"]
    return found


def test_logged_in_each_epoch_and_reported(tmp_path: Path) -> None:
    folder = run(
        check(tiny(tmp_path, "temperature={schedule: linear, start: 9, end: 1}")), "a test"
    )
    history = rows(folder, "student")
    assert history[0]["teacher/entropy"] > history[1]["teacher/entropy"]  # the temperature falls
    assert (
        history[0]["teacher/accuracy"]
        == history[1]["teacher/accuracy"]
        == rows(folder, "teacher")[-1]["val/acc"]
    )
    assert not any("teacher/entropy" in row for row in rows(folder, "baseline"))
    report = json.loads((folder / "report.json").read_text())
    assert report["teaching"]["entropy"] == history[-1]["teacher/entropy"]
    assert "divergence" in (folder / "report.md").read_text()


def test_concerns_are_told(tmp_path: Path) -> None:
    folder = run(check(tiny(tmp_path, "teacher.epochs=0", "epochs=6")), "a test")
    report = read_report(folder / "report.json")
    assert any("train the teacher longer" in line for line in verdict(report))
    assert "train the teacher longer" in (folder / "report.md").read_text()


def test_without_a_teacher_there_is_nothing_to_tell(tmp_path: Path) -> None:
    folder = run(
        check(tiny(tmp_path, "loss=label_smoothing", "stages=[baseline,distill]")), "a test"
    )
    assert json.loads((folder / "report.json").read_text())["teaching"] is None


def test_fine_tuning_keeps_what_was_told_of_the_distillation(tmp_path: Path) -> None:
    run_folder = run(
        check(tiny(tmp_path, "experiment=finetune", "stage.finetune.epochs=1")), "a test"
    )
    assert json.loads((run_folder / "report.json").read_text())["teaching"]["entropy"] > 0


def test_a_teacher_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    views_of = kd.stages.result.views_of

    def spy(*args: Any, **options: Any) -> torch.Tensor:
        asked.append((options["augment"].mixes, options["view"], *args[1].tolist()))
        return views_of(*args, **options)

    monkeypatch.setattr(kd.stages.result, "views_of", spy)
    for temperature in (1, 2, 3):
        run(check(tiny(tmp_path, f"temperature={temperature}", "data/augment=strong")), "a test")
    # Two views of an image alone, and one mixed as the student sees it.
    assert {(mixes, view) for mixes, view, *_ in asked} == {(False, 0), (False, 1), (True, 0)}
    assert len(asked) == len(set(asked)), "some were asked about twice"


def test_label_probability_is_of_the_labels_that_are_known() -> None:
    views = torch.tensor([[[0.0, 3.0], [2.0, 0.0]]] * 2)
    logits = torch.tensor([[1.0, 0.0]])
    some = TeacherDiagnosis(logits, torch.tensor([0]), views, torch.tensor([-1, 0]), views[0])
    # softmax of (2, 0): 1 / (1 + exp(-2)) for class 0
    assert some.at(1.0)["label_probability"] == pytest.approx(1 / (1 + math.exp(-2)))
    none = TeacherDiagnosis(logits, torch.tensor([0]), views, torch.tensor([-1, -1]), views[0])
    assert none.at(1.0)["label_probability"] == pytest.approx(1 / (1 + math.exp(-1)))
