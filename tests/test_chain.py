"""Stages that build on others: their teacher, their key, and fine-tuning."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import METHODS, OF_TASKS, ON_FEATURES, composed, tiny
from safetensors.torch import load_file
from stopping import stop_before
from torch import Tensor

from kd.config.construct import construct
from kd.config.schema import Config, check
from kd.data.base import DataModule
from kd.errors import StopRequest, UserError
from kd.files.store import StageResult
from kd.runs.run import run
from kd.stages.chain import chain_of
from kd.stages.stage import Stage, make_stage
from kd.training import loss_spec
from kd.training.distiller import Distiller


def done(name: str) -> StageResult:
    return StageResult(f"key-of-{name}", Path("nowhere"), {})


@pytest.fixture(scope="module")
def data() -> DataModule:
    made: DataModule = construct(check(tiny(Path("unused"))).data, "data")
    return made


def stage(name: str, data: DataModule, *overrides: str) -> Stage:
    finished = {each: done(each) for each in ("teacher", "baseline", "distill")}
    config = check(composed("stages=[teacher,baseline,distill,finetune]", *overrides))
    (plan,) = (plan for plan in chain_of(config) if plan.name == name)
    return make_stage(plan, config, data, finished)


class TestChain:
    @pytest.mark.parametrize(
        ("stages", "loss", "message"),
        [
            ("[distill]", "kd", "distill builds on teacher, which must come before it"),
            ("[distill,teacher]", "kd", "distill builds on teacher"),
            ("[teacher,distill]", "tfkd_self", "distill builds on baseline"),
            ("[baseline,finetune]", "kd", "finetune builds on distill"),
            ("[teacher,finetune,distill]", "kd", "finetune builds on distill"),
        ],
    )
    def test_refused(self, stages: str, loss: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            chain_of(check(composed(f"stages={stages}", f"loss={loss}")))

    @pytest.mark.parametrize(
        ("stages", "loss"),
        [
            ("[teacher,distill,finetune]", "kd"),
            ("[baseline,distill]", "tfkd_self"),
            ("[distill]", "label_smoothing"),
            ("[distill]", "dml"),
            ("[baseline]", "kd"),
            ("[teacher,baseline,distill]", "tfkd_reg"),
        ],
    )
    def test_accepted(self, stages: str, loss: str) -> None:
        chain_of(check(composed(f"stages={stages}", f"loss={loss}")))

    def test_an_unknown_stage(self) -> None:
        with pytest.raises(
            UserError,
            match=r"stages: there is no 'distil'; accepted are .*; did you mean 'distill'\?",
        ):
            chain_of(check(composed("stages=[teacher,distil]")))

    def test_weights_of_another_net_are_no_start(self) -> None:
        with pytest.raises(
            UserError, match=r"stage\.distill\.start: teacher is another net than distill"
        ):
            chain_of(check(composed("stage.distill.start=teacher")))

    def test_a_stage_says_what_it_does_otherwise_than_its_recipe(self) -> None:
        stage = (
            "{net: student, loss: labels, epochs: 7, seed_offset: 5, lr_factor: 0.5, ema: 0.9, "
            "keep: last}"
        )
        config = check(
            composed(
                f"+stage.mine={stage}", "stages=[mine]", "seed=2", "optim.lr=0.2", "batch_size=32"
            )
        )
        (plan,) = chain_of(config)
        assert (plan.recipe.epochs, plan.recipe.seed, plan.recipe.ema, plan.recipe.keep) == (
            7,
            7,
            0.9,
            "last",
        )
        assert plan.recipe.optim["lr"] == pytest.approx(0.1)
        assert plan.recipe.batch_size == 32  # what it does not say is the student's

    def test_the_teachers_net_comes_with_the_teachers_recipe(self) -> None:
        again = "+stage.again={net: teacher, loss: method, teacher: teacher}"
        config = check(composed(again, "stages=[teacher,again]", "teacher.epochs=9", "epochs=3"))
        assert [plan.recipe.epochs for plan in chain_of(config)] == [9, 9]

    def test_an_assistant_stands_between(self) -> None:
        chain = {
            plan.name: plan
            for plan in chain_of(check(composed("experiment=assistant", "loss=dkd")))
        }
        assert list(chain) == ["teacher", "assistant", "baseline", "distill"]
        assert chain["assistant"].teacher == "teacher"
        assert chain["distill"].teacher == "assistant"
        assert [plan.role for plan in chain.values()] == ["teacher", None, "baseline", "student"]
        assert chain["assistant"].loss.node == chain["distill"].loss.node

    def test_each_generation_teaches_the_next(self) -> None:
        chain = {plan.name: plan for plan in chain_of(check(composed("experiment=born_again")))}
        assert [chain[name].teacher for name in ("distill", "born_again", "born_again_2")] == [
            "teacher",
            "distill",
            "born_again",
        ]
        assert (
            len({chain[name].recipe.seed for name in ("distill", "born_again", "born_again_2")})
            == 3
        )


class TestKeys:
    @pytest.mark.parametrize(
        ("loss", "teacher"),
        [
            ("kd", "teacher"),
            ("tfkd_self", "baseline"),
            ("label_smoothing", None),
            ("tfkd_reg", None),
            ("dml", None),
        ],
    )
    def test_distill_depends_on_its_own_teacher_alone(
        self, loss: str, teacher: str | None, data: DataModule
    ) -> None:
        made = stage("distill", data, f"loss={loss}")
        assert made.spec.teacher == (f"key-of-{teacher}" if teacher else None)
        assert made.teacher == (done(teacher) if teacher else None)

    def test_code_of_all_parts_of_the_loss_is_in_the_key(self, data: DataModule) -> None:
        dml = stage("distill", data, "loss=dml", "teacher=resnet18").spec.code
        assert {"kd.losses.dml", "kd.nets.resnet", "kd.nets.mlp"} <= set(dml)
        assert "kd.config.schedules" in stage("distill", data, "loss=dkd").spec.code
        assert "kd.config.schedules" not in stage("distill", data).spec.code

    def test_finetune_starts_from_distill_and_knows_labels_only(self, data: DataModule) -> None:
        made = stage(
            "finetune",
            data,
            "stage.finetune.epochs=3",
            "stage.finetune.lr_factor=0.5",
            "optim.lr=0.4",
        )
        assert made.start == done("distill")
        assert made.teacher is None
        assert made.spec.start == "key-of-distill"
        assert made.spec.objective == {"ce_weight": 1.0, "terms": {}}
        assert made.spec.epochs == 3
        assert made.spec.optim["lr"] == pytest.approx(0.2)

    def test_finetune_key(self, data: DataModule) -> None:
        plain = stage("finetune", data).key
        for override in (
            "stage.finetune.epochs=3",
            "stage.finetune.lr_factor=0.3",
            "seed=1",
            "batch_size=64",
            "student.net.hidden=[8]",
        ):
            assert stage("finetune", data, override).key != plain, override
        for override in (
            "temperature=2",
            "loss=dkd",
            "teacher.epochs=3",
            "epochs=3",
            "stages=[teacher,distill,finetune]",
        ):
            # They share the key of distill.
            assert stage("finetune", data, override).key == plain, override

    def test_finetune_settings_are_no_part_of_other_stages(self, data: DataModule) -> None:
        for name in ("teacher", "baseline", "distill"):
            assert stage(name, data, "stage.finetune.epochs=3").key == stage(name, data).key

    def test_finetune_needs_a_learning_rate(self) -> None:
        with pytest.raises(
            UserError, match=r"stage.finetune.lr_factor: it multiplies optim.lr, which is not set"
        ):
            chain_of(check(composed("experiment=finetune", "~optim.lr")))


def finished(config: Config) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    folder = run(config, "a test")
    return (
        json.loads((folder / "report.json").read_text()),
        load_file(folder / "student.safetensors"),
        folder,
    )


def stored(report: dict[str, Any], output: Path, role: str) -> Path:
    key = next(model["stage"] for model in report["models"] if model["role"] == role)
    return output / "store" / key


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for all methods, with a common teacher and baseline."""
    return tmp_path_factory.mktemp("methods")


@pytest.mark.slow
class TestRuns:
    @pytest.mark.parametrize("method", [method for method in METHODS if method not in OF_TASKS])
    def test_every_method_distils(self, method: str, output: Path) -> None:
        budget = ["data.limit=300", "epochs=5", "teacher.epochs=6", "optim=adamw", "optim.lr=0.02"]
        if method in ON_FEATURES:  # maps to compare
            budget += ["model=resnet18_to_cnn", "teacher.net.width=8", "student.net.width=8"]
            budget += ["optim.lr=0.01"]
        report, weights, folder = finished(check(tiny(output, f"loss={method}", *budget)))
        student = stored(report, output, "student")
        rows = json.loads((student / "stage.json").read_text())["history"]
        name = "kd" if method == "kd_dist" else method
        if method in ON_FEATURES and method != "crd":  # whose loss grows as its memory fills
            assert rows[-1][f"train/loss_{name}"] < rows[0][f"train/loss_{name}"]
        else:
            assert rows[-1]["val/acc"] > (0.3 if method == "crd" else 0.7)  # chance is 0.1
        assert {
            f"train/loss_{name}",
            f"train/weight_{name}",
            "train/loss_ce",
            "train/weight_ce",
        } <= set(rows[0])
        baseline = load_file(stored(report, output, "baseline") / "weights.safetensors")
        assert set(weights) == set(baseline) or method == "simkd"  # and nothing of the loss
        assert (folder / "report.md").exists()

    @pytest.mark.parametrize("method", ["tfkd_self", "label_smoothing", "tfkd_reg", "dml"])
    def test_no_teacher_where_none_is_needed(self, method: str, tmp_path: Path) -> None:
        report, _, _ = finished(
            check(tiny(tmp_path, f"loss={method}", "stages=[baseline,distill]"))
        )
        assert [model["role"] for model in report["models"]] == ["baseline", "student"]

    def test_finetune_is_the_student(self, tmp_path: Path) -> None:
        chain = "stages=[teacher,baseline,distill,finetune]"
        report, weights, _ = finished(check(tiny(tmp_path, chain, "stage.finetune.epochs=3")))
        _, distilled, _ = finished(check(tiny(tmp_path)))
        _, untouched, _ = finished(check(tiny(tmp_path, chain, "stage.finetune.epochs=0")))
        student = report["models"][-1]
        assert (student["role"], student["epochs"]) == ("student", 2 + 3)
        assert all(torch.equal(untouched[k], distilled[k]) for k in distilled)
        assert not any(torch.equal(weights[k], distilled[k]) for k in distilled)

    def test_assistant_chain(self, tmp_path: Path) -> None:
        report, _, _ = finished(
            check(tiny(tmp_path, "experiment=assistant", "stage.assistant.net.width=4"))
        )
        assert [model["role"] for model in report["models"]] == ["teacher", "baseline", "student"]
        spec = json.loads((stored(report, tmp_path, "student") / "stage.json").read_text())["spec"]
        assistant = json.loads((tmp_path / "store" / spec["teacher"] / "stage.json").read_text())
        assert assistant["name"] == "assistant"
        assert assistant["spec"]["net"]["width"] == 4
        assert assistant["spec"]["teacher"] == stored(report, tmp_path, "teacher").name

    def test_born_again_chain(self, tmp_path: Path) -> None:
        report, _, _ = finished(check(tiny(tmp_path, "experiment=born_again")))
        names = []
        key = stored(report, tmp_path, "student").name
        while key:
            stage = json.loads((tmp_path / "store" / key / "stage.json").read_text())
            names.append(stage["name"])
            key = stage["spec"].get("teacher")
        assert names == ["born_again_2", "born_again", "distill", "teacher"]
        assert report["models"][-1]["epochs"] == 2  # its own; it started afresh

    def test_schedule_runs_over_the_steps_of_training(self, tmp_path: Path) -> None:
        override = "temperature={schedule: linear, start: 8, end: 2}"
        report, _, folder = finished(check(tiny(tmp_path, override, "epochs=4")))
        rows = json.loads((stored(report, tmp_path, "student") / "stage.json").read_text())[
            "history"
        ]
        # 4 steps per epoch; an epoch's row has the last.
        found = [row["train/kd_temperature"] for row in rows]
        assert found == pytest.approx([8 - 6 * (4 * epoch + 3) / 16 for epoch in range(4)])
        assert "Tlinear-8-2" in folder.name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ctkd", "dml", "crd", "ofd", "ft", "mgd"])
def test_what_a_loss_learns_is_trained_and_resumed(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Tensor]] = []

    def keep(self: Distiller) -> None:
        states.append(copy.deepcopy(self.objective.state_dict()))

    monkeypatch.setattr(Distiller, "on_train_start", keep)
    monkeypatch.setattr(Distiller, "on_train_end", keep)
    budget = (f"loss={method}", "epochs=4", "stages=[teacher,distill]", "teacher.epochs=0")
    _, whole, _ = finished(check(tiny(tmp_path / "whole", *budget)))
    with monkeypatch.context() as patch:
        stop_before(2, patch)
        with pytest.raises(StopRequest):
            finished(check(tiny(tmp_path / "cut", *budget)))
    assert list((tmp_path / "cut" / "store").glob("*.partial/last.ckpt"))
    _, resumed, _ = finished(check(tiny(tmp_path / "cut", *budget)))
    start, end, *_, between, end_of_resumed = states
    trained = [k for k in start if not torch.equal(start[k], end[k])]
    assert trained
    # It resumed from the checkpoint
    assert any(not torch.equal(start[k], between[k]) for k in trained)
    assert all(torch.equal(end[k], end_of_resumed[k]) for k in end)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_the_loss_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: list[str] = []
    real = loss_spec._read_term

    def counted(name: str, *rest: Any) -> Any:
        read.append(name)
        return real(name, *rest)

    monkeypatch.setattr(loss_spec, "_read_term", counted)
    config = check(tiny(tmp_path, "epochs=1", "teacher.epochs=1", "loss=kd_dist"))
    run(config, "a test")
    assert sorted(read) == ["dist", "kd"]
