"""Operating points: a threshold chosen on one part, and its results on another."""

import json
import math
from pathlib import Path

import pytest
import torch
from composed import composed_command
from scipy.stats import norm

from kd.errors import UserError
from kd.evaluation.evaluation import evaluate
from kd.evaluation.evaluation_text import sentences
from kd.evaluation.requests import Evaluate
from kd.files.evaluation_file import EvaluationRecord
from kd.measure.metrics import ask
from kd.measure.operating_point import (
    at_threshold,
    by_cost,
    by_sensitivity,
    positive_scores,
)
from kd.nets.build import normalization_of
from kd.run_commands import command_of, read_request
from kd.runs.reader import open_run

POINT = "operating_point"


def config(run: Path, *overrides: str) -> Evaluate:
    words = (f"run={run}", f"output_dir={run.parent}", *overrides)
    return read_request(command_of("evaluate"), composed_command("evaluate", *words), set())


def brute(scores: list[float], positive: list[bool]) -> list[tuple[float, int, int]]:
    """Return each distinct threshold from the lowest, with its misses and false alarms."""
    return [
        (
            t,
            sum(p and s < t for s, p in zip(scores, positive, strict=True)),
            sum(not p and s >= t for s, p in zip(scores, positive, strict=True)),
        )
        for t in [*sorted(set(scores)), math.inf]
    ]


@pytest.mark.parametrize("seed", range(20))
def test_thresholds_are_the_best_of_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    positive = torch.rand(40, generator=generator) < 0.4
    scores = (torch.randn(40, generator=generator) + positive).mul(3).round().double()  # ties
    every = brute(scores.tolist(), positive.tolist())
    count = int(positive.sum())
    for target in (0.05, 0.5, 0.8, 0.95, 1.0):
        enough = [t for t, missed, _ in every if count - missed >= target * count - 1e-9]
        assert by_sensitivity(scores, positive, target) == max(enough)
    for price in (0.01, 0.5, 1.0, 3.0, 100.0):
        costs = [price * missed + alarms for _, missed, alarms in every]
        assert by_cost(scores, positive, price) == every[costs.index(min(costs))][0]


def test_a_share_of_the_positives_is_no_image_more() -> None:
    scores = torch.arange(100, dtype=torch.float64)
    every = torch.ones(100, dtype=torch.bool)
    assert by_sensitivity(scores, every, 0.07) == 93  # 7, though 0.07 * 100 is 7.000000000000001
    assert by_sensitivity(scores, every, 0.071) == 92


def wilson(count: int, total: int) -> list[float]:
    z, p = float(norm.ppf(0.975)), count / total
    middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return [middle - half, middle + half]


def test_what_a_threshold_gives() -> None:
    scores = torch.tensor([0.9, 0.5, 0.2, 0.6, 0.1, 0.0, 0.3])
    positive = torch.tensor([True, True, True, False, False, False, False])
    found = at_threshold(scores, positive, 0.5)  # an image at the threshold counts
    assert (found.found, found.missed, found.false_alarms, found.cleared) == (2, 1, 1, 3)
    for name, (count, total) in {
        "sensitivity": (2, 3),
        "specificity": (3, 4),
        "precision": (2, 3),
        "negative_precision": (3, 4),
    }.items():
        assert getattr(found, name) == count / total
        assert list(getattr(found, f"{name}_ci95")) == pytest.approx(wilson(count, total))
    nobody = at_threshold(scores, positive, math.inf)
    assert (nobody.sensitivity, nobody.precision, nobody.precision_ci95) == (0, None, None)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_score_is_the_log_odds(label: int) -> None:
    logits = 5 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(1)[:, label]
    torch.testing.assert_close(positive_scores(logits, label), (p / (1 - p)).log())


@pytest.mark.slow
def test_an_operating_point_is_chosen_on_validation_and_judged_on_test(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(finished)
    wanted = (f"{POINT}.positive=3", f"{POINT}.sensitivity=0.8", f"out={tmp_path}")
    record = json.loads(evaluate(run, config(finished, *wanted), "x").read_text())
    found = record[POINT]
    assert found["positive"] == "3"
    split, net = run.data().split, run.net("student")
    scores = {}
    for name, part in (("validation", split.val), ("test", split.test)):
        logits = ask(net, part, normalization_of(net, ((0.0,), (1.0,)))).double()
        scores[name] = logits.softmax(1)[:, 3], part.labels == 3
    p, there = scores["validation"]
    student = found["models"]["student"]
    t = student["threshold"]
    assert float((p[there] >= t - 1e-12).double().mean()) >= 0.8
    assert float((p[there] > t + 1e-12).double().mean()) < 0.8
    for name, (p, there) in scores.items():
        alarm = p >= t - 1e-12
        assert student[name]["sensitivity"] == float(alarm[there].double().mean())
        assert student[name]["false_alarms"] == int((alarm & ~there).sum())
    assert set(found["models"]) == {"teacher", "baseline", "student"}
    text = (tmp_path / "evaluation.md").read_text()
    assert "## Operating point" in text
    assert f"{100 * student['test']['sensitivity']:.2f} [" in text
    said = " ".join(capsys.readouterr().out.split())
    assert "counts as 3" in said
    few = int(scores["validation"][1].sum())
    assert f"Of these validation images {few} are 3, which are too few: take the thresh" in said
    for found, cleared, caution in (
        (49, 90, " 49 are 3,"),
        (90, 49, " 49 are not 3,"),
        (50, 50, ""),
    ):
        counts = {"found": found, "missed": 0, "false_alarms": 0, "cleared": cleared}
        for model in record[POINT]["models"].values():
            model["validation"] |= counts
        said = " ".join(sentences(EvaluationRecord.model_validate_json(json.dumps(record))))
        assert ("too few: take the threshold" in said, caution in said) == (bool(caution), True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["positive=3"], r"operating_point: .*found positive alone; needed is either sensitivity"),
        (["sensitivity=0.9", "miss_cost=2"], r"operating_point: .*sensitivity and miss_cost"),
        (["sensitivity=1.2"], r"operating_point.sensitivity: found 1.2"),
        (["miss_cost=0"], r"operating_point.miss_cost: found 0"),
        (["sensitivity=0.9"], r"operating_point.positive: found None; accepted is one of .*0, 1"),
        (["sensitivity=0.9", "positive=eleven"], r"operating_point.positive: found 'eleven'"),
    ],
)
def test_wrong_operating_points_are_refused(
    finished: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(
            open_run(finished),
            config(finished, f"out={tmp_path}", *(f"{POINT}.{word}" for word in words)),
            "",
        )
