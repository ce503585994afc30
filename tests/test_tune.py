"""The search: space, trials, resuming, end; no trial sees the test part."""

import contextlib
import csv
import functools
import io
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from commands import exit_code
from composed import CONF, TINY, composed, composed_command, plan
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from processes import Process

import kd.stages.answers
import kd.stages.result
import kd.tuning.search
from kd.config.checking import check_as
from kd.config.construct import construct
from kd.config.schema import check
from kd.data.base import DataModule
from kd.errors import DropRequest, StopRequest, UserError
from kd.files.stage_record import BestAndLast
from kd.files.store import StageResult, Store
from kd.stages.complete import complete
from kd.stages.stage import make_stage
from kd.tuning.compare import gain_on_test, spread
from kd.tuning.request import Tuning, typed_space
from kd.tuning.space import read_space, text_of

# So settings differ in accuracy, and TPE chooses some
MORE = ["epochs=6", "optim.lr=0.02", "startup_trials=2"]
ARGUMENTS = ["model=mlp_to_mlp", *TINY, "study=s", "seeds=[1,2]"]


def searched(out: Path, *arguments: str) -> int:
    """Run the search without the comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd.tuning.search.compare_settings", lambda *args: None)
        options, overrides = list(arguments[:2]), list(arguments[2:])
        if options[0] != "--config-dir":
            options, overrides = [], list(arguments)
        return exit_code("tune", *options, *ARGUMENTS, f"output_dir={out}", *overrides)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "tune" / "s" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def study(out: Path, name: str = "s") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{out}/tune/{name}/study.db")


@dataclass
class Whole:
    """A search of four trials with its comparison."""

    out: Path
    code: int
    said: str
    printed: str
    read: list[str]
    in_store: list[str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """Run once; record predictions in order, and the logits in the store at the end of the
    search.
    """
    out = tmp_path_factory.mktemp("whole")
    found = Whole(out, -1, "", "", [], [])
    predict, compare = kd.stages.answers.predict_logits, kd.tuning.search.compare_settings

    def counted(net: Any, data: DataModule, images: Any, *rest: Any) -> torch.Tensor:
        parts = {id(data.split.train): "train", id(data.split.val): "val"}
        found.read.append(
            parts.get(id(images), "test")
            if data.split.test is None
            else f"{parts.get(id(images), 'test')}+"
        )
        return predict(net, data, images, *rest)

    def compared(*args: Any) -> Any:
        found.read.append("compare")
        found.in_store += [path.name for path in (out / "store").glob("*/logits-*")]
        return compare(*args)

    printed, said = io.StringIO(), io.StringIO()
    torch.set_num_threads(1)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(said),
    ):
        patch.setattr(kd.stages.answers, "predict_logits", counted)
        patch.setattr(kd.tuning.search, "compare_settings", compared)
        found.code = exit_code("tune", *ARGUMENTS, f"output_dir={out}", "n_trials=4", *MORE)
    found.said, found.printed = said.getvalue(), printed.getvalue()
    return found


def test_no_trial_sees_test_data(whole: Whole) -> None:
    assert whole.code == 0, whole.said
    at = whole.read.index("compare")
    assert set(whole.read[:at]) == {"val"}, (
        "and without a `+`: the search's data has no test part at all"
    )
    assert whole.read[at + 1 :].count("test+") > 0
    validation = construct(check(composed(*TINY)).data, "data").split.val.fingerprint[:16]
    assert set(whole.in_store) == {f"logits-{validation}.safetensors"}
    runs = [
        path.name.partition("_s_")[2] or path.name for path in (whole.out / "tune/s/runs").iterdir()
    ]
    assert len(runs) in (2, 4)
    assert not (whole.out / "runs").exists()


def test_each_trial_has_its_line_and_its_row(whole: Whole) -> None:
    lines = [line for line in whole.said.splitlines() if line.startswith("trial ")]
    assert len(lines) == 4
    assert lines[0].startswith("trial 1/4: temperature=2.0 alpha=0.5 (the recipe's own) -> ")
    table = rows(whole.out)
    values = [float(row["validation"]) for row in table]
    for i, (line, row) in enumerate(zip(lines, table, strict=True)):
        best = max(values[: i + 1])
        at = values.index(best) + 1
        setting = f"temperature={row['temperature']} alpha={row['alpha']}"
        own = " (the recipe's own)" if i == 0 else ""
        assert (
            line
            == f"trial {i + 1}/4: {setting}{own} -> {values[i]:.4f} (best {best:.4f}, trial {at})"
        )
        assert 1 <= float(row["temperature"]) <= 16
        assert 0.1 <= float(row["alpha"]) <= 0.9
        assert (row["state"], row["epochs"]) == ("complete", "6")


def test_a_trials_value_is_that_of_the_weights_that_are_kept(whole: Whole) -> None:
    stages = [json.loads(path.read_text()) for path in (whole.out / "store").glob("*/stage.json")]
    by_alpha = {
        stage["spec"]["objective"]["terms"]["kd"]["weight"]: max(
            row["val/acc"] for row in stage["history"]
        )
        for stage in stages
        if stage["name"] == "distill" and stage["spec"]["seed"] == 0
    }
    assert [float(row["validation"]) for row in rows(whole.out)] == [
        by_alpha[float(row["alpha"])] for row in rows(whole.out)
    ]


def test_comparison_is_over_seeds_and_as_in_the_reports(whole: Whole) -> None:
    result = json.loads((whole.out / "tune/s/result.json").read_text())
    reports = [
        json.loads(path.read_text())
        for path in sorted((whole.out / "tune/s/runs").glob("*/report.json"))
    ]
    best = max(rows(whole.out), key=lambda row: (float(row["validation"]), -int(row["trial"])))
    assert list(result["settings"]) == ["default"] + ["tuned"] * (best["trial"] != "1")
    for name, found in result["settings"].items():
        mine = [each for each in reports if f"_{name}_s" in each["name"]]
        assert [each["seed"] for each in mine] == [1, 2]
        students = [
            model for each in mine for model in each["models"] if model["role"] == "student"
        ]
        assert found["test"] == [model["test"]["accuracy"] for model in students]
        assert found["validation"] == [model["val"]["best"] for model in students]
        assert spread(found["test"]) in whole.printed
    assert "Chosen on validation by 4 trials, all with seed 0" in whole.printed
    paste = next(
        line for line in whole.printed.splitlines() if line.startswith("    python -m kd.train ")
    )
    overrides = shlex.split(paste)[3:]
    config = check(composed(*overrides))
    assert (str(config.temperature), str(config.alpha)) == (best["temperature"], best["alpha"])
    assert config.epochs == 6
    assert config.data["labels"] is reports[0]["config"]["data"]["labels"] is None  # all, as tuned


@pytest.mark.parametrize(
    ("words", "added"),
    [
        ((), True),
        (("data.val_fraction=0.4",), True),
        (("data=digits",), False),
        (("data=digits_few", "data.val_labels=null"), False),
    ],
)
def test_a_command_for_train_names_the_digits(
    words: tuple[str, ...], added: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kd.train` alone has few labels."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        "kd.tuning.search.tune", lambda request, command: asked.append(request.overrides)
    )
    typed = ("model=mlp_to_mlp", f"output_dir={tmp_path}", *words)
    assert exit_code("tune", *typed) == 0
    assert asked == [(*typed, "data=digits") if added else typed]


def test_after_the_end_nothing_is_done_again(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kd.training.fit.fit", lambda *args, **options: pytest.fail("trained again")
    )
    before = sorted((whole.out / "tune/s/runs").iterdir())
    assert exit_code("tune", *ARGUMENTS, f"output_dir={whole.out}", "n_trials=4", *MORE) == 0
    assert sorted((whole.out / "tune/s/runs").iterdir()) == before
    assert len(rows(whole.out)) == 4


def test_an_interrupted_search_is_the_same_search(
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert searched(tmp_path, "n_trials=2", *MORE) == 0
    with monkeypatch.context() as patch:

        def stopped(self: Any, config: Any, trial: optuna.Trial, pruning: bool) -> float:
            raise StopRequest("distill")

        patch.setattr("kd.tuning.evaluation.Evaluation.value", stopped)
        assert searched(tmp_path, "n_trials=4", *MORE) == 130
    assert "python -m kd.tune" in capsys.readouterr().err
    states = [trial.state for trial in study(tmp_path).trials]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.FAIL, TrialState.WAITING]
    assert searched(tmp_path, "n_trials=4", *MORE) == 0
    settings = [
        (row["temperature"], row["alpha"]) for row in rows(tmp_path) if row["state"] == "complete"
    ]
    assert settings == [(row["temperature"], row["alpha"]) for row in rows(whole.out)]


def test_a_killed_processs_trial_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_curves(monkeypatch, [[0.5]] * 9)
    assert searched(tmp_path, "n_trials=1") == 0
    dead = study(tmp_path).ask()
    dead.suggest_float("temperature", 1.0, 16.0, log=True)
    dead.suggest_float("alpha", 0.1, 0.9)
    dead.set_user_attr("process", "gone")
    assert searched(tmp_path, "n_trials=2") == 0
    trials = study(tmp_path).trials
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.COMPLETE,
    ]
    assert trials[2].params == dead.params


def test_trials_of_other_settings_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_curves(monkeypatch, [[0.5]] * 9)
    assert searched(tmp_path, "n_trials=1") == 0
    assert searched(tmp_path, "n_trials=2", "epochs=1") == 2
    said = capsys.readouterr().err
    assert "'s' was started with epochs=2, found is 1" in said
    assert "study=NAME" in said
    assert searched(tmp_path, "n_trials=1", "seeds=[7]", "study=null") == 0
    assert searched(tmp_path, "n_trials=1", "epochs=1", "study=null") == 0
    assert len(list((tmp_path / "tune").glob("digits_mlp_to_mlp_kd_*"))) == 2


def fake_curves(monkeypatch: pytest.MonkeyPatch, curves: Sequence[Sequence[float]]) -> None:
    """Replace training by these curves of validation accuracy, in order."""
    left = iter(curves)

    def fake(stage: Any, store: Any, data: Any, *, watch: Callable[..., None] | None = None) -> Any:
        if stage.name != "distill":
            return StageResult("key", Path(), {}), False
        history = [
            {"epoch": i, "train/loss": 1.0, "val/acc": value} for i, value in enumerate(next(left))
        ]
        for row in history:
            if watch:
                watch(row)
        best = max(history, key=lambda row: row["val/acc"])
        val = BestAndLast(best=best, last=history[-1])
        record = SimpleNamespace(val=val, history=history)
        return StageResult("key", Path(), record), False  # type: ignore[arg-type]

    monkeypatch.setattr("kd.tuning.evaluation.complete", fake)
    monkeypatch.setattr("kd.tuning.evaluation.Evaluation.teachers", lambda *args: None)


def test_below_the_median_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = [
        "loss=label_smoothing",
        "stages=[distill]",
        "search.space.alpha={low: 0.1, high: 0.9}",
        "epochs=6",
    ]
    settings = [
        "n_trials=5",
        "startup_trials=2",
        "warmup_epochs=2",
        "~search.space.temperature",
        *alone,
    ]
    # Would be pruned in its first epochs without warm-up
    low = [0.1, 0.1, 0.5, 0.5, 0.5, 0.6]
    curves = [[0.5] * 6, [0.7] * 6, [0.4] * 6, low, [0.6] * 4 + [0.9, 0.9]]
    fake_curves(monkeypatch, curves)
    assert searched(tmp_path, *settings) == 0
    # Medians of the finished ones at epoch 3: of 0.5 and 0.7 it is 0.6.
    assert [(row["state"], row["epochs"]) for row in rows(tmp_path)] == [
        ("complete", "6"),
        ("complete", "6"),
        ("pruned", "3"),
        ("pruned", "3"),
        ("complete", "6"),
    ]
    said = capsys.readouterr().err
    assert "-> pruned at epoch 3 (best 0.7000, trial 2)" in said
    assert "trial 5, " in said
    fake_curves(monkeypatch, curves)
    assert searched(tmp_path, *settings, "pruning=false", "study=t") == 0
    assert {
        trial.state
        for trial in optuna.load_study(
            study_name="t", storage=f"sqlite:///{tmp_path}/tune/t/study.db"
        ).trials
    } == {TrialState.COMPLETE}


def test_a_dropped_stage_leaves_nothing_and_can_be_trained_later(tmp_path: Path) -> None:
    config = check(composed(*TINY, "stages=[baseline]", f"output_dir={tmp_path}"))
    data: DataModule = construct(config.data, "data")
    stage, store, seen = (
        make_stage(plan(config, "baseline"), config, data, {}),
        Store(tmp_path / "store"),
        [],
    )

    def watch(row: Mapping[str, float]) -> None:
        seen.append(row["epoch"])
        raise DropRequest("enough")

    with pytest.raises(DropRequest):
        complete(stage, store, data, watch=watch)
    assert seen == [0]
    assert [path for path in store.root.iterdir() if path.is_dir()] == []
    done, reused = complete(stage, store, data, watch=lambda row: seen.append(row["epoch"]))
    assert (len(done.record.history), reused, seen) == (2, False, [0, 0, 1])


def test_who_watches_is_shown_the_epochs_of_an_earlier_attempt_too(tmp_path: Path) -> None:
    config = check(composed(*TINY, "stages=[baseline]", f"output_dir={tmp_path}"))
    data: DataModule = construct(config.data, "data")
    stage, store, seen = (
        make_stage(plan(config, "baseline"), config, data, {}),
        Store(tmp_path / "store"),
        [],
    )

    def crash(row: Mapping[str, float]) -> None:
        if row["epoch"] == 1:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        complete(stage, store, data, watch=crash)
    complete(stage, store, data, watch=lambda row: seen.append((row["epoch"], row["val/acc"])))
    done = store.find(stage.key)
    assert done is not None
    assert seen == [(row["epoch"], row["val/acc"]) for row in done.record.history]


def test_a_failed_trial_is_recorded_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_curves(monkeypatch, [[0.5]] * 9)
    knob = "search.space.lr_schedule={choices: [onecycle, linear]}"
    only = ["~search.space.temperature", "~search.space.alpha"]
    assert searched(tmp_path, "n_trials=4", "startup_trials=1", knob, *only) == 0
    said = capsys.readouterr().err
    assert "lr_schedule=linear -> failed: lr_schedule: found 'linear'" in said
    table = rows(tmp_path)
    assert {(row["state"], row["lr_schedule"]) for row in table} == {
        ("complete", "onecycle"),
        ("fail", "linear"),
    }
    assert "found 'linear'" in next(row["error"] for row in table if row["state"] == "fail")


def test_without_any_finished_trial_the_end_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverging = ["optim=sgd", "optim.lr=1e20", "lr_schedule=constant"]
    assert (
        searched(tmp_path, "n_trials=2", "loss=label_smoothing", "stages=[distill]", *diverging)
        == 1
    )
    said = capsys.readouterr().err
    assert "none of 2 trials finished" in said
    assert "distill: the loss is nan at step 2" in said
    assert "Traceback" not in said


def test_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_curves(monkeypatch, [[0.5]] * 9)
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("kd.tuning.search.perf_counter", lambda: float(next(clock)))
    range_of_its_own = "search.space.alpha={choices: [0.1, 0.2]}"  # and not mixed with the file's
    assert (
        searched(
            tmp_path, "timeout=35", "loss=label_smoothing", "stages=[distill]", range_of_its_own
        )
        == 0
    )
    assert {row["alpha"] for row in rows(tmp_path)} <= {"0.1", "0.2"}
    assert len(rows(tmp_path)) == 2  # begun at 0, looked at 10, 20, 30 and 40


def test_a_space_of_ones_own_from_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "conf" / "search").mkdir(parents=True)
    (tmp_path / "conf" / "search" / "mine.yaml").write_text(
        "space:\n"
        "  optim.lr: {low: 0.001, high: 0.01, log: true}\n"
        "  student: {net: {hidden: {choices: [[4], [8], [4, 4]]}}}\n"
        "  epochs: {low: 1, high: 2}\n"
        "  data/augment: {choices: [none, light]}\n"
        "  loss: {choices: [kd, dist]}\n"
        "  alpha: {low: 0.25, high: 0.75, step: 0.25}\n"
    )
    arguments = ["--config-dir", str(tmp_path / "conf"), "search=mine", "n_trials=5"]
    assert searched(tmp_path, *arguments) == 0
    table = rows(tmp_path)
    assert len(table) == 5
    for row in table:
        assert 0.001 <= float(row["optim.lr"]) <= 0.01
        assert row["student.net.hidden"] in ("[4]", "[8]", "[4, 4]")
        assert row["epochs"] in ("1", "2")
        assert row["loss"] in ("kd", "dist")
        assert row["alpha"] in (("0.25", "0.5", "0.75") if row["loss"] == "kd" else ("",)), (
            "dist has no alpha"
        )
    stages = [
        json.loads(path.read_text())["spec"] for path in (tmp_path / "store").glob("*/stage.json")
    ]
    tried = {(spec["net"]["hidden"][0], spec["epochs"]) for spec in stages}
    assert {(int(row["student.net.hidden"][1]), int(row["epochs"])) for row in table} <= tried


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("tune", ["model=mlp_to_mlp", *overrides], return_hydra_config=True)


def composing(*overrides: str) -> Callable[[Sequence[str]], DictConfig]:
    return lambda more: _composed((*overrides, *MORE))


def test_what_a_range_means() -> None:
    node = {
        "temperature": {"low": 1, "high": 16, "log": True},
        "epochs": {"low": 2, "high": 8, "step": 2},
        "loss": {"terms": {"kd": {"loss": {"standardize": {"choices": [True, False]}}}}},
        "ema": {"low": 0.9, "high": 0.99},
        "early_stopping": {"low": 2, "high": 4},
    }
    space = read_space(node, composing(), None, {"n_trials"})
    given = {
        "temperature": 3.14159,
        "epochs": 4,
        "loss.terms.kd.loss.standardize": "true",
        "ema": 0.95,
    }
    trial = optuna.trial.FixedTrial({**given, "early_stopping": 3})
    drawn = space.draw(trial, composing())  # type: ignore[arg-type]
    assert drawn == {
        "temperature": "3.142",
        "epochs": "4",
        "loss.terms.kd.loss.standardize": "true",
        "ema": "0.95",
        "early_stopping": "3",
    }
    assert trial.distributions == {
        "temperature": FloatDistribution(1.0, 16.0, log=True),
        "epochs": IntDistribution(2, 8, step=2),
        "loss.terms.kd.loss.standardize": CategoricalDistribution(("true", "false")),
        "ema": FloatDistribution(0.9, 0.99),
        "early_stopping": IntDistribution(2, 4),
    }


@pytest.mark.parametrize(
    ("found", "default"),
    [
        ({"low": 1, "high": 16}, 2.0),
        ({"low": 3, "high": 16}, None),
        ({"low": 1.5, "high": 3, "step": 0.5}, 2.0),
        ({"low": 1.5, "high": 3, "step": 1}, None),
        ({"choices": [1.0, 2.0]}, "2.0"),
        ({"choices": [1.0, 3.0]}, None),
    ],
)
def test_the_recipes_own_setting_is_tried_first_where_it_is_in_the_range(
    found: Any, default: Any
) -> None:
    space = read_space({"temperature": found}, composing(), None, set())
    assert space.defaults(composing()([])) == (
        None if default is None else {"temperature": default}
    )


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.5, "kd", "true", "it's, {odd}", [1, [2, "a b"]], {"a": 1, "b": [2]}]
)
def test_a_value_survives_the_command_line(value: Any) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", [f"+x={text_of(value)}"]).x == value


BAD_SPACE: list[tuple[Any, str]] = [
    ({"temprature": {"low": 1, "high": 2}}, "temprature: no such knob; did you mean 'temperature'"),
    ({"optim": {"lrr": {"low": 1, "high": 2}}}, "optim.lrr: no such knob; did you mean 'optim.lr'"),
    ({"temperature": 3}, "temperature: found 3; accepted is {low: 1, high: 16}"),
    ({"temperature": {"lo": 1, "high": 2}}, "temperature.lo: no such key; did you mean 'low'"),
    ({"temperature": {"low": 1}}, "temperature: needed are low and high"),
    ({"temperature": {"low": 3, "high": 2}}, "temperature: found low 3 and high 2"),
    ({"temperature": {"low": 1, "high": math.inf}}, "temperature: found low 1 and high inf"),
    ({"temperature": {"low": "a", "high": 2}}, "temperature: found 'a', accepted is a number"),
    ({"temperature": {"low": 0, "high": 2, "log": True}}, "temperature: log needs a low above 0"),
    ({"temperature": {"low": 1, "high": 2, "step": -1}}, "temperature: found step -1"),
    ({"temperature": {"choices": [1]}}, "temperature.choices: found [1]"),
    ({"temperature": {"choices": [1, 2], "low": 1}}, "temperature: choices stand alone"),
    ({"optim": {"low": 1, "high": 2}}, "optim: is a group of files"),
    ({"student": {"net": {"choices": [1, 2]}}}, "student.net: no such knob"),
    ({"seed": {"choices": [1, 2]}}, "seed: cannot be searched"),
    ({"n_trials": {"choices": [1, 2]}}, "n_trials: cannot be searched"),
    ({"data": {"split_seed": {"choices": [1, 2]}}}, "data.split_seed: cannot be searched"),
    ({"data": {"choices": ["digits", "mnist"]}}, "data: cannot be searched"),
    ({}, "there is nothing to search"),
]


@pytest.mark.parametrize(("node", "words"), BAD_SPACE, ids=[str(node) for node, _ in BAD_SPACE])
def test_what_is_no_space(node: Any, words: str) -> None:
    with pytest.raises(
        UserError, match=re.escape(f"search.space{'.' * bool(node)}{': ' * (not node)}{words}")
    ):
        read_space(node, composing(), None, {"n_trials"})


def test_a_loss_without_alpha_is_searched_without_it() -> None:
    node = {"temperature": {"low": 1, "high": 2}, "alpha": {"low": 0.1, "high": 0.2}}
    space = read_space(node, composing("loss=dkd"), set(), set())
    assert [knob.name for knob in space.knobs] == ["temperature"]
    with pytest.raises(UserError, match="alpha"):
        read_space(node, composing("loss=dkd"), {"alpha"}, set())


def test_what_was_bought_in_a_sentence() -> None:
    gains = [0.01, 0.03, 0.02]
    # t, 97.5 %, 2 degrees
    half = 4.302652729911275 * statistics.stdev(100 * gain for gain in gains) / math.sqrt(3)
    assert gain_on_test(gains) == (
        f"Tuning bought +2.00 points on test [95 % over 3 seeds: {2 - half:+.2f} to "
        f"{2 + half:+.2f}]; that may be chance."
    )
    assert not gain_on_test([0.01, 0.011, 0.012]).endswith("chance.")
    assert "no telling" in gain_on_test([0.01])
    assert "bought nothing" in gain_on_test([])


def test_commands_in_the_docs_can_be_searched() -> None:
    page = CONF.parent / "docs" / "tuning.md"
    lines = [line.partition("  #")[0] for line in page.read_text().splitlines()]
    commands = [shlex.split(line)[3:] for line in lines if line.startswith("python -m kd.tune")]
    assert len(commands) >= 3
    for words in commands:
        overrides = [f"++{word}" if word.startswith("search.space.") else word for word in words]
        cfg = composing(*overrides)([])
        check_as(
            Tuning,
            OmegaConf.create({key: OmegaConf.select(cfg, key) for key in Tuning.model_fields}),
        )
        node, asked = typed_space(cfg.search.space, overrides)
        read_space(
            node, composing(*[word for word in overrides if "search" not in word]), asked, set()
        )


@pytest.mark.parametrize(
    ("command", "words", "source"),
    [
        ("tune", ["experiment=cifar10_cpu"], "kd.data.cifar10.CIFAR10"),
        ("compare", ["experiment=cifar100_crd_protocol"], "kd.data.cifar100.CIFAR100"),
        ("compare", ["experiment=cifar10_cpu", "data=mnist"], "kd.data.mnist.MNIST"),
        ("tune", [], "kd.data.digits.Digits"),
        ("compare", [], "kd.data.digits.Digits"),
    ],
)
def test_an_experiment_brings_its_data(command: str, words: list[str], source: str) -> None:
    """Also where no command line is read, as for a job of a sweep; and all labels otherwise."""
    data = composed_command(command, *words).data
    assert (data._target_, data.labels) == (source, None)


def test_help_needs_neither_torch_nor_optuna() -> None:
    code = (
        "import sys, kd.tune; print([m for m in ('torch', 'optuna', 'lightning') if m in "
        "sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONF.parent
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.slow
def test_two_processes_share_a_search(tmp_path: Path) -> None:
    both = [
        Process("kd.tune", *ARGUMENTS, f"output_dir={tmp_path}", "n_trials=6") for _ in range(2)
    ]
    assert [process.wait().returncode for process in both] == [0, 0], [
        process.stderr for process in both
    ]
    trials = study(tmp_path).trials
    assert sorted(trial.state for trial in trials) == [TrialState.COMPLETE] * 6
    assert len({trial.user_attrs["process"] for trial in trials}) == 2
    assert (tmp_path / "tune" / "s" / "result.md").exists()
