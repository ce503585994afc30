"""Comparisons: the same search for each method, then several seeds; resumed; ranks; dry run."""

import json
import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest
from commands import exit_code
from composed import TINY, composed
from matplotlib.backends.backend_agg import FigureCanvasAgg
from optuna.trial import TrialState

from kd.comparison.critical_difference import (
    critical_difference,
    critical_difference_plot,
    ranks_of,
)
from kd.config.schema import check
from kd.data.digits import Digits
from kd.runs.run import run
from kd.stages.open_data import source_key
from kd.tuning.space import numbers_of_loss

PAIR = ("model=mlp_to_mlp", *TINY)
WORDS = (*PAIR, "loss=kd,dkd", "seed=1,2", "n_trials=2", "epochs=1", "teacher.epochs=1")

# Demšar 2006, table 5: q of the two-tailed Nemenyi test at 5 %, by the number of methods
Q = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize(("methods", "q"), Q.items())
def test_critical_differences_are_those_of_demsar(methods: int, q: float) -> None:
    expected = q * (methods * (methods + 1) / (6 * 14)) ** 0.5
    assert critical_difference(methods, 14) == pytest.approx(expected, rel=1e-3)
    if methods == 4:  # his example in section 3.2.4
        assert round(critical_difference(4, 14), 2) == 1.25


def test_equal_scores_share_a_rank() -> None:
    found = ranks_of({"a": [0.9, 0.5, 0.7], "b": [0.8, 0.5, 0.9], "c": [0.7, 0.4, 0.8]})
    assert found is not None
    # Ranks of a: 1, 1.5, 3; of b: 2, 1.5, 1; of c: 3, 3, 2
    assert found.means == pytest.approx({"b": 4.5 / 3, "a": 5.5 / 3, "c": 8 / 3})
    assert (list(found.means), found.problems) == (["b", "a", "c"], 3)
    assert found.alike == [("b", "a", "c")]
    texts = [text.get_text() for text in critical_difference_plot(found).axes[0].texts]
    assert any(f"critical difference {2.343 * (12 / 18) ** 0.5:.2f}" in text for text in texts)


def test_groups_that_are_not_shown_to_differ() -> None:
    # Over ten problems of three methods the critical difference is 2.343 * sqrt(12 / 60) = 1.048
    best, middle, worst = [3.0] * 10, [2.0] * 5 + [1.0] * 5, [1.0] * 5 + [2.0] * 5
    long = "a method with a long name"
    found = ranks_of({"worst": worst, long: best, "middle": middle})
    assert found is not None
    assert found.difference == pytest.approx(1.048, abs=1e-3)
    assert found.means == {long: 1.0, "worst": 2.5, "middle": 2.5}
    assert found.alike == [("worst", "middle")]
    few = ranks_of({"a": [1.0, 2.0], "b": [2.0, 1.0], "c": [3.0, 3.0]})
    assert few is not None
    assert few.difference > 2, "longer than the line of the ranks"
    for each in (found, few):
        figure = critical_difference_plot(each)
        renderer = FigureCanvasAgg(figure).get_renderer()
        for text in figure.axes[0].texts:  # all of it is inside the picture
            box = text.get_window_extent(renderer)
            assert all(figure.bbox.contains(*corner) for corner in (box.p0, box.p1))
    assert ranks_of({"alone": best}) is None
    assert ranks_of({"a": [1.0], "b": [2.0]}) is None


@pytest.mark.parametrize(
    ("loss", "knobs"),
    [
        ("kd", ["temperature", "alpha"]),
        ("at", ["loss.terms.at.weight"]),
        ("dkd", ["temperature", "loss.terms.dkd.weight.end"]),
        ("reviewkd", ["loss.terms.reviewkd.weight.end"]),
    ],
)
def test_a_losses_own_numbers(loss: str, knobs: list[str]) -> None:
    cfg = composed(f"loss={loss}")
    found = numbers_of_loss(cfg)
    assert list(found) == knobs
    node = check(cfg).loss["terms"].get(loss, {}).get("weight")
    weight = node["end"] if isinstance(node, dict) else node
    for key in knobs:
        if key.startswith("loss."):
            assert found[key] == {"low": weight / 10, "high": weight * 10, "log": True}


def counted(patch: pytest.MonkeyPatch, where: str, function: Any, calls: list[str]) -> None:
    """Note each call of the function at this path, by its name."""

    def call(*given: Any, **keywords: Any) -> Any:
        calls.append(function.__name__)
        return function(*given, **keywords)

    patch.setattr(where, call)


@pytest.mark.slow
def test_two_methods_two_seeds_interrupted_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in its second job; then the rest is done; then nothing is left to do.

    test_tune.py and test_sweep.py kill processes, and let several share a search and a sweep.
    """
    words = (*WORDS, f"output_dir={tmp_path}")
    done = []

    def interrupted(*given: Any, **keywords: Any) -> Path:
        if done:
            raise KeyboardInterrupt
        done.append(run(*given, **keywords))
        return done[0]

    with monkeypatch.context() as patch:
        patch.setattr("kd.comparison.cell.run", interrupted)
        assert exit_code("compare", *words) == 130
    (first,) = tmp_path.glob("sweeps/*/*/report.json")
    written = first.stat().st_mtime_ns
    calls: list[str] = []
    counted(monkeypatch, "kd.data.digits.Digits.read", Digits.read, calls)
    plot = "kd.comparison.table.critical_difference_plot"
    counted(monkeypatch, plot, critical_difference_plot, calls)
    assert exit_code("compare", *words) == 0, capsys.readouterr().err
    # Each job reads its data once, for the search and the run; the plot is drawn once for two files
    assert calls == ["read"] * 3 + ["critical_difference_plot"]
    assert first.stat().st_mtime_ns == written
    folder = first.parents[1]
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*/report.json"))]
    assert [(each["seed"], list(each["config"]["loss"]["terms"])) for each in reports] == [
        (1, ["dkd"]),
        (2, ["dkd"]),
        (1, ["kd"]),
        (2, ["kd"]),
    ]
    for path in tmp_path.glob("tune/*/study.db"):
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{path}")
        ended = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
        assert len(ended) == 2, "the same budget for each method"
        best = max(ended, key=lambda trial: (trial.value, -trial.number)).user_attrs["setting"]
        mine = [
            each
            for each in reports
            if next(iter(each["config"]["loss"]["terms"])) in path.parent.name.split("_")
        ]
        for report in mine:
            line = shlex.split(report["command"])
            assert line[:3] == ["python", "-m", "kd.train"]
            assert {f"{knob}={value}" for knob, value in best.items()} < set(line)
            assert f"seed={report['seed']}" in line
            assert report["config"]["seed"] == report["seed"]
    text = (folder / "comparison.md").read_text()
    assert "by 2 trials for each pair of nets, all with seed 0" in text
    assert "Mean ranks over 2 problems" in text
    rows = [line for line in text.splitlines() if "nets=mlp_to_mlp loss=" in line]
    accuracy = [row for row in rows if "gain" not in row][:2]
    for row in accuracy:
        assert row.split("|")[3].strip() == "2"
    names = {"comparison.md", "comparison.csv", "comparison.html", "critical_difference.svg"}
    assert names <= {path.name for path in folder.iterdir()}
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("kd.comparison.cell.run", lambda *_, **__: pytest.fail("done again"))
        assert exit_code("compare", *words) == 0
    assert "4 jobs" in (said := capsys.readouterr()).err
    assert "4 of them done" in said.err
    assert "Mean ranks over 2 problems" in said.out


def test_a_dry_run_says_how_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*PAIR, "loss=kd,at,kdd", "seed=1,2,3", "n_trials=4", "epochs=20", "teacher.epochs=9")
    assert exit_code("compare", *words, "dry_run=true", f"output_dir={tmp_path}") == 1
    said, refused = capsys.readouterr()
    assert refused.count("loss=kdd: failed: loss: there is no 'kdd'") == 3
    assert "6 jobs to do" in said
    # A teacher for all; a baseline per seed; and per method its trials and its seeds. What a
    # teacher says of a view is stored: for the seeds, and for the trials with theirs
    for line in (
        *("teacher: 1 x ", "baseline: 3 x ", "distill by kd: 7 x ", "distill by at: 7 x "),
        "stored answers of the teacher: 4 x ",
    ):
        assert f"mlp_to_mlp: {line}" in said
    assert "ms a step" in said
    assert not list(tmp_path.glob("store/*/stage.json"))
    assert not list(tmp_path.glob("tune/*"))


def test_without_trials_nothing_need_be_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*PAIR, "loss=kd,dist", "seed=1", "epochs=1", f"output_dir={tmp_path}")
    assert exit_code("compare", *words, "n_trials=0", "data.val_fraction=0") == 0
    assert "nothing was tuned" in capsys.readouterr().out
    assert not (tmp_path / "tune").exists()


def test_the_seed_of_labels_counts_where_labels_are_chosen() -> None:
    """Data is read once for all seeds otherwise."""

    def keys(*words: str) -> int:
        return len({source_key(check(composed(*words, f"seed={seed}"))) for seed in (1, 2)})

    assert [keys(), keys("data.labels=50"), keys("data.val_labels=50")] == [1, 2, 2]
