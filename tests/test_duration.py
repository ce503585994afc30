"""How long a run takes, and fewer epochs where that is over a budget."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from commands import exit_code
from composed import TINY, composed

from kd.config.fields import seconds_of
from kd.config.schema import Config, check
from kd.data.digits import Digits
from kd.runs.duration import stage_seconds, times_of_image, within_budget
from kd.runs.run import run
from kd.stages.chain import StagePlan, chain_of

ASKED = ("epochs=1", "min_steps=32", "teacher.epochs=40", "loss=kd")  # 32 steps: 8 epochs of 4
SECONDS = {"teacher": 2.0, "baseline": 0.5, "distill": 1.5}  # of an epoch, measured


def planned(*overrides: str) -> list[StagePlan]:
    return chain_of(check(composed(*TINY, *overrides)).resolve())


@pytest.mark.parametrize(
    ("length", "seconds"),
    [("90s", 90), ("30min", 1800), ("2h", 7200), ("1h30min", 5400), ("0.5h", 1800)],
)
def test_lengths(length: str, seconds: float) -> None:
    assert seconds_of(length) == seconds


@pytest.mark.parametrize("wrong", ["30", "min", "", "0s", "half an hour", "1..5h"])
def test_no_lengths(wrong: str) -> None:
    assert seconds_of(wrong) == 0


def test_a_stage_takes_its_images_times_its_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 images and a third of 144 for validation, 5 epochs, a hundredth of a second each."""
    monkeypatch.setattr("kd.runs.duration.image_seconds", lambda *_: 0.01)
    config = check(composed(*TINY, "epochs=5")).resolve()
    plans = {plan.name: plan for plan in chain_of(config)}
    data = Digits(limit=200)
    assert stage_seconds(plans["baseline"], config, data) == pytest.approx(5 * (200 + 48) * 0.01)
    short = check(composed(*TINY, "epochs=5", "trainer.limit_train_batches=2")).resolve()
    assert stage_seconds(plans["baseline"], short, data) == pytest.approx(5 * (100 + 48) * 0.01)


def test_a_teachers_answer_counts_however_busy_the_machine_is() -> None:
    config = check(composed(*TINY)).resolve()
    plans = {plan.name: plan for plan in chain_of(config)}
    times = {name: times_of_image(plan, config, Digits()) for name, plan in plans.items()}
    assert {name: answer > 0 for name, (_, answer) in times.items()} == {
        "teacher": False,
        "baseline": False,
        "distill": True,
    }


def test_reading_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 images whose reading takes 80 ms: 5 ms each at least."""
    monkeypatch.setattr("kd.runs.duration._net_seconds", lambda *_: (0.0, 0.0))
    monkeypatch.setattr("kd.runs.duration.views_of", lambda *_, **__: time.sleep(0.08))
    config = check(composed(*TINY, "epochs=5")).resolve()
    plans = {plan.name: plan for plan in chain_of(config)}
    least = 5 * (200 + 48) * 0.005
    assert stage_seconds(plans["baseline"], config, Digits(limit=200)) >= least


def test_time_of_an_image_grows_with_the_net() -> None:
    """A net of 300 times the multiplications takes longer; a stage that trains nothing, no time."""
    data = Digits(limit=200)
    config = check(composed(*TINY)).resolve()
    small, large = (
        {plan.name: plan for plan in planned(f"student.net.hidden={hidden}")}["baseline"]
        for hidden in ([8], [2048, 2048])
    )
    assert 0 < stage_seconds(small, config, data) < stage_seconds(large, config, data)


def test_a_budget_is_what_key_config_and_report_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 * 2 + 8 * 0.5 + 8 * 1.5 = 96 s are asked for; 24 s are a quarter of them."""
    measured: list[str] = []

    def seconds(plan: StagePlan, config: Config, data: Any) -> float:
        measured.append(plan.name)
        return plan.recipe.epochs * SECONDS[plan.name]

    monkeypatch.setattr("kd.runs.duration.stage_seconds", seconds)
    words = (*TINY, *ASKED, "budget=24s", f"output_dir={tmp_path}")
    report = json.loads((run(check(composed(*words)), "kd") / "report.json").read_text())
    said = capsys.readouterr().err
    note = "budget: 24s; as asked the stages take about 2 min; epochs: teacher 10"
    assert note in said
    assert any(each.startswith(note) for each in report["data"]["notes"])
    assert [model["epochs"] for model in report["models"]] == [10, 2, 2]
    assert (report["config"]["epochs"], report["config"]["teacher"]["epochs"]) == (2, 10)
    specs = [json.loads(path.read_text())["spec"] for path in tmp_path.glob("store/*/stage.json")]
    assert sorted(spec["epochs"] for spec in specs) == [2, 2, 10]
    # Again, on a machine that is ten times as slow now: as many epochs, so nothing is trained.
    monkeypatch.setitem(SECONDS, "teacher", 20.0)
    run(check(composed(*words, "seed=0", "temperature=8")), "kd")
    assert len(list(tmp_path.glob("store/*/stage.json"))) == 4  # the student at another T alone
    assert measured == ["teacher", "baseline", "distill"]


def test_a_budget_below_an_epoch_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 epochs of 80 s: one is the least, and takes longer than 30 s."""
    monkeypatch.setattr("kd.runs.duration.stage_seconds", lambda plan, *_: 240.0)
    config = check(composed(*TINY, "epochs=3", "budget=30s", f"output_dir={tmp_path}")).resolve()
    plans = [plan for plan in chain_of(config) if plan.name == "baseline"]
    assert within_budget(config, plans, plans, Digits(limit=200)).epochs == 1
    said = capsys.readouterr().err
    assert "4 min, and an epoch of each, which is the least, 80 s; epochs: baseline 1" in said


def test_a_budget_that_suffices_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd.runs.duration.stage_seconds", lambda plan, *_: 1.0)
    words = (*TINY, "stages=[baseline]", "epochs=3", "budget=1h", f"output_dir={tmp_path}")
    report = json.loads((run(check(composed(*words)), "kd") / "report.json").read_text())
    assert report["models"][0]["epochs"] == 3


def test_a_wrong_budget_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (("train", "accepted is a length of time"), ("tune", "accepted is null")):
        length = "soon" if command == "train" else "30min"
        assert exit_code(command, f"budget={length}", f"output_dir={tmp_path}") == 2
        assert "budget: found" in (err := capsys.readouterr().err)
        assert said in err
