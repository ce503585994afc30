"""kd.train in this process: files, messages, exits."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import exit_code
from composed import TINY
from dropping import AS_STUDENT
from processes import Process
from safetensors.torch import load_file, safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd.config.schema import Config
from kd.files.run_folder import RunFolder
from kd.runs.run import run
from kd.train import start

Make = Callable[..., Config]
ARGUMENTS = ["model=mlp_to_mlp", *TINY]


def tensors_equal(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def shape_of(value: Any) -> Any:
    """Return the types in a nested structure, to compare with the contract's."""
    if isinstance(value, dict):
        return {key: shape_of(each) for key, each in value.items()}
    return type(value)


def test_run_folder_and_report(make_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(make_config(), "python -m kd.train x=1")
    assert folder.parent.name == "runs"
    assert {path.name for path in folder.iterdir()} >= {
        "report.json",
        "report.md",
        "student.safetensors",
        "config.yaml",
        "tensorboard",
    }
    assert [path for path in folder.parent.iterdir() if path.name.endswith(".partial")] == []
    report = json.loads((folder / "report.json").read_text())
    number, fraction = float, float
    test = {
        "accuracy": fraction,
        "balanced_accuracy": fraction,
        "nll": number,
        "ece": number,
        "agreement": fraction,
    }
    for model, role in zip(report["models"], ("teacher", "baseline", "student"), strict=True):
        assert model["role"] == role
        assert shape_of({k: model["test"][k] for k in test}) == test
        low, high = model["test"]["accuracy_ci95"]
        assert 0 <= low <= model["test"]["accuracy"] <= high <= 1
        rest = {
            "net": str,
            "params": int,
            "macs": int,
            "bytes": int,
            "stage": str,
            "epochs": int,
            "seconds": float,
        }
        assert shape_of({k: model[k] for k in rest}) == rest
        assert model["latency_ms"]["batch"] == 1
        assert 0 < model["latency_ms"]["median"] <= model["latency_ms"]["p95"]
        record = json.loads(
            (folder.parents[1] / "store" / model["stage"] / "stage.json").read_text()
        )
        for i, row in enumerate(record["history"]):
            assert {name: values[i] for name, values in model["history"].items()} == row
        assert model["history"]["epoch"] == [0, 1]
    assert report["schema"] == 1
    assert report["command"] == "python -m kd.train x=1"
    data = {"name": "digits", "classes": list("0123456789"), "train": 200, "val": 135, "test": 449}
    assert data.items() <= report["data"].items()
    assert set(report["environment"]) == {"python", "torch", "lightning", "device", "threads"}
    assert set(report["comparison"]) == {
        "gain",
        "gain_ci95",
        "p_value",
        "lead",
        "lead_ci95",
        "gap_closed",
        "retention",
        "speedup",
        "compression",
    }
    # 64 inputs: 64 * 16 + 16 + 16 * 10 + 10, one multiply-accumulate a weight.
    teacher, baseline, student = report["models"]
    assert teacher["params"] == 64 * 16 + 16 + 16 * 10 + 10
    assert teacher["macs"] == 64 * 16 + 16 * 10
    assert teacher["test"]["agreement"] == 1.0
    gain = student["test"]["accuracy"] - baseline["test"]["accuracy"]
    assert report["comparison"]["gain"] == pytest.approx(gain, abs=1e-12)
    gap = teacher["test"]["accuracy"] - baseline["test"]["accuracy"]
    closed = report["comparison"]["gap_closed"]
    assert closed is None if gap <= 0 else closed == pytest.approx(gain / gap)
    assert report["comparison"]["lead"] == pytest.approx(gap, abs=1e-12)
    assert report["comparison"]["compression"] == teacher["params"] / student["params"]
    out = capsys.readouterr().out
    assert str(folder / "report.html") in out
    for role in ("teacher", "baseline", "student"):
        assert role in out

    with safe_open(folder / "student.safetensors", "pt") as file:
        about = json.loads(file.metadata()["kd"])
    assert about["classes"] == list("0123456789")
    assert about["shape"] == [1, 8, 10]


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda *_: "20260101-000000")
    # Both have checked before either has written
    folders = [RunFolder(tmp_path, "digits") for _ in range(2)]
    with folders[0] as first, folders[1] as second:
        assert first.path != second.path
    with RunFolder(tmp_path, "digits"):
        pass
    stem = "20260101-000000_digits"
    assert sorted(path.name for path in tmp_path.iterdir()) == [stem, f"{stem}_2", f"{stem}_3"]


def test_what_a_killed_run_left_is_removed_and_one_at_work_is_not(tmp_path: Path) -> None:
    (tmp_path / "20250101-000000_dead.partial" / "tensorboard").mkdir(parents=True)
    with RunFolder(tmp_path, "alive") as alive:
        with RunFolder(tmp_path, "next") as after:
            assert alive.path.is_dir()
            assert {path.suffix for path in tmp_path.iterdir()} == {".partial", ".lock"}
            assert len(list(tmp_path.glob("*.partial"))) == 2
        assert after.final.is_dir()
    assert sorted(tmp_path.iterdir()) == sorted([alive.final, after.final])


def test_events_of_every_stage_are_in_the_run(make_config: Make) -> None:
    folder = run(make_config("trainer.log_every_n_steps=1"), "")
    for stage in ("teacher", "baseline", "distill"):
        assert not (folder / "tensorboard" / stage).is_symlink()
        events = EventAccumulator(str(folder / "tensorboard" / stage)).Reload()
        tags = set(events.Tags()["scalars"])
        wanted = {"train/loss", "train/loss_ce", "train/acc", "val/loss", "val/acc", "lr"}
        wanted |= {"val/agreement"} if stage != "teacher" else set()
        wanted |= {"train/loss_kd"} if stage == "distill" else set()
        assert wanted <= tags
        assert len(events.Scalars("val/acc")) == 2


def test_the_students_file_holds_nothing_of_a_loss_that_learns(make_config: Make) -> None:
    folder = run(make_config("loss=dml", "stages=[distill]"), "")
    assert set(load_file(folder / "student.safetensors")) == {
        "hidden.0.weight",
        "hidden.0.bias",
        "fc.weight",
        "fc.bias",
    }


def test_who_may_read_a_new_file_may_read_all_that_is_kept(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config()
    (plain := tmp_path / "plain").touch()
    run(config, "")
    kept = {
        path.suffix: path.stat().st_mode
        for path in Path(config.output_dir).rglob("*")
        if path.is_file()
    }
    assert {".safetensors", ".npy", ".json"} <= set(kept)
    assert {suffix for suffix, mode in kept.items() if mode != plain.stat().st_mode} == set()


def test_second_run_trains_nothing_and_changing_temperature_trains_one_stage(
    make_config: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(make_config(), "")
    capsys.readouterr()
    # It neither tries the recipe nor counts a net again, which take seconds
    with monkeypatch.context() as patch:
        patch.setattr("kd.runs.preflight.preflight", lambda *_: pytest.fail("tried out"))
        patch.setattr("kd.stages.result.count_macs", lambda *_: pytest.fail("counted again"))
        second = run(make_config(), "")
    said = capsys.readouterr().err
    assert said.count("already there") == 3
    assert second != first
    a, b = (json.loads((folder / "report.json").read_text()) for folder in (first, second))
    assert [(m["test"], m["macs"]) for m in a["models"]] == [
        (m["test"], m["macs"]) for m in b["models"]
    ]
    run(make_config("temperature=3"), "")
    said = capsys.readouterr().err
    assert said.count("already there") == 2
    assert "distill: trained" in said


def test_test_part_is_read_once_per_model(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kd.stages.answers

    calls: list[str] = []
    original = kd.stages.answers.predict_logits

    def counted(net: Any, data: Any, images: Any, *rest: Any) -> torch.Tensor:
        parts = {
            id(data.split.train): "train",
            id(data.split.val): "val",
            id(data.split.test): "test",
        }
        calls.append(parts[id(images)])
        return original(net, data, images, *rest)

    monkeypatch.setattr(kd.stages.answers, "predict_logits", counted)
    run(make_config(), "")
    assert calls.count("test") == 3
    assert calls.index("test") == len(calls) - 3, "only when every stage is done"
    run(make_config("seed=0"), "")
    assert calls.count("test") == 3


def test_without_baseline_or_teacher_the_comparison_says_less(make_config: Make) -> None:
    report = json.loads(
        (run(make_config("stages=[teacher,distill]"), "") / "report.json").read_text()
    )
    assert report["comparison"]["gain"] is None
    assert report["comparison"]["speedup"] > 0
    folder = run(make_config("stages=[baseline]"), "")
    report = json.loads((folder / "report.json").read_text())
    assert [model["role"] for model in report["models"]] == ["baseline"]
    assert report["models"][0]["test"]["agreement"] is None
    assert not (folder / "student.safetensors").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim=sgd", "optim.lr=0.05"],
        ["lr_schedule=cosine"],
        ["lr_schedule=step"],
        ["lr_schedule=warmup_cosine", "label_smoothing=0.1", "swa=0.5"],
        ["optim=muon"],
        ["optim=timm"],
        ["lr_schedule=constant", "gradient_clip=0.5"],
        ["ema=0.8"],
        ["keep=last"],
        ["data.views=1"],
        ["data.num_workers=1"],
    ],
    ids=" ".join,
)
def test_options_of_training_run(make_config: Make, overrides: list[str]) -> None:
    run(make_config("stages=[baseline]", *overrides), "")


def test_early_stopping_stops(make_config: Make) -> None:
    folder = run(
        make_config("stages=[baseline]", "epochs=30", "optim.lr=1e-9", "early_stopping=2"), ""
    )
    assert json.loads((folder / "report.json").read_text())["models"][0]["epochs"] == 3


def test_averaged_weights_are_kept(make_config: Make) -> None:
    runs = [
        run(make_config("stages=[baseline]", "keep=last", *more), "") for more in ([], ["swa=0.0"])
    ]
    plain, averaged = (
        json.loads((folder / "report.json").read_text())["models"][0]["test"]["nll"]
        for folder in runs
    )
    # All steps are similar, also the first, whose loss is almost ln 10.
    assert plain < averaged - 0.02


def test_loader_workers_do_not_change_the_result(make_config: Make) -> None:
    folders = [
        run(
            make_config(
                "stages=[teacher,distill]",
                f"data.num_workers={n}",
                f"output_dir={make_config().output_dir}{n}",
                *AS_STUDENT,
            ),
            "",
        )
        for n in (0, 2)
    ]
    assert tensors_equal(*(folder / "student.safetensors" for folder in folders))


def test_checkpoint_of_another_number_of_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kd.nets.mlp import MLP

    path = tmp_path / "teacher.pth"
    torch.save(MLP(7, 1, 8, [16]).state_dict(), path)
    assert (
        exit_code("train", *ARGUMENTS, f"output_dir={tmp_path / 'out'}", f"teacher.path={path}")
        == 2
    )
    said = capsys.readouterr().err
    for word in ("teacher.path", str(path), "fc.weight", "[7, 16]", "[10, 16]", "7 classes", "10"):
        assert word in said


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from kd.errors import UserError

    monkeypatch.setattr(sys, "argv", ["kd.train", "alpha=2", "debug=true"])
    with pytest.raises(UserError):
        start()


def test_command_works_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("train", *ARGUMENTS, "stages=[baseline]") == 0
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert folder.name.endswith("_digits_few_mlp_to_mlp_kd_T2.0_a0.5_s0")
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"], (
        "Hydra must leave nothing of its own"
    )


@pytest.mark.slow
def test_interrupt_and_resume_give_the_same_weights(tmp_path: Path) -> None:
    arguments = [
        *ARGUMENTS,
        "epochs=15",
        "teacher.epochs=5",
        "student.net.hidden=[200,200,200]",
        "data.limit=1000",
    ]

    def start(out: str) -> Process:
        return Process("kd.train", *arguments, f"output_dir={tmp_path / out}")

    assert start("whole").wait().returncode == 0
    cut = start("cut")
    assert any("distill: epoch 5/" in line for line in cut.lines()), cut.stderr
    cut.send_signal(signal.SIGINT)
    assert cut.wait().returncode == 130, cut.stderr
    assert "python -m kd.train" in cut.stderr
    assert "Traceback" not in cut.stderr
    again = start("cut").wait()
    assert again.returncode == 0
    assert again.stderr.count("already there") == 2
    assert "distill: training for 15 epochs, from the last finished epoch" in again.stderr
    results = [
        next((tmp_path / out / "runs").glob("*/student.safetensors")) for out in ("whole", "cut")
    ]
    assert tensors_equal(*results)
    reports = [json.loads((path.parent / "report.json").read_text()) for path in results]
    assert [m["test"] for m in reports[0]["models"]] == [m["test"] for m in reports[1]["models"]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_cluster_that_wants_its_node_back(number: int, tmp_path: Path) -> None:
    cut = Process(
        "kd.train", *ARGUMENTS, "stages=[baseline]", "epochs=2000", f"output_dir={tmp_path}"
    )
    assert any("baseline: epoch 3/" in line for line in cut.lines()), cut.stderr
    cut.send_signal(number)
    started = time.monotonic()
    assert cut.wait().returncode == 130, cut.stderr
    assert time.monotonic() - started < 10
    assert (
        "kd: interrupted; the same command goes on from here:\n  python -m kd.train" in cut.stderr
    )
    assert "Traceback" not in cut.stderr
    assert len(list((tmp_path / "store").glob("*.partial/last.ckpt"))) == 1


@pytest.mark.slow
def test_two_commands_at_once_train_each_stage_once(tmp_path: Path) -> None:
    arguments = (*ARGUMENTS, "epochs=20", "teacher.epochs=20", f"output_dir={tmp_path}")
    both = [Process("kd.train", *arguments) for _ in range(2)]
    assert [process.wait().returncode for process in both] == [0, 0]
    for stage in ("teacher", "baseline", "distill"):
        assert "".join(process.stderr for process in both).count(f"{stage}: trained") == 1
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.slow
def test_default_pair_at_smoke_size_through_the_shell(tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "kd.train",
        "model=resnet18_to_cnn",
        "trainer=smoke",
        f"output_dir={tmp_path}",
    ]
    started = time.monotonic()
    first = subprocess.run(line, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "Report: " in first.stdout
    second = Process(*line[2:]).wait()
    assert second.stderr.count("already there") == 3
    assert time.monotonic() - started < 200
