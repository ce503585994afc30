"""kd.incremental: files, stages shared and retrained, and exits."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import exit_code
from composed import FLOAT32, composed
from safetensors.torch import load_file

from kd.config.construct import construct
from kd.errors import UserError
from kd.files.store import Store
from kd.measure.metrics import predict_logits
from kd.runs.reader import open_run
from kd.stages.complete import complete
from kd.stages.result import load_net
from kd.summary import write_summary
from kd.tasks.exemplars import features_of
from kd.tasks.run import TaskSchedule, preflight, run
from kd.tasks.schedule import IncrementalConfig, check
from kd.training.callbacks import History

TINY = (
    *FLOAT32,
    "data.limit=200",
    "epochs=2",
    "batch_size=20",
    "student=mlp",
    "student.net.hidden=[12]",
    "trainer=cpu",
    "incremental.tasks=3",
)
METHODS = ("lwf", "lwf_bce", "lwf_mix", "icarl", "wa", "der", "finetune", "joint")
KEEPING = ("icarl", "wa", "der")
CRLD = ["loss=crld", "~loss.terms.old", "incremental.weight=null"]


def made(out: Path, method: str, *overrides: str) -> IncrementalConfig:
    kept = ["incremental.exemplars=40"] if method in KEEPING else []
    words = [f"incremental/method={method}", *TINY, *kept, f"output_dir={out}", *overrides]
    return check(composed(*words, config="incremental"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("out")


class Runs(dict[str, Path]):
    """Return a finished run of each requested method, all with one store."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out = out

    def __missing__(self, method: str) -> Path:
        self[method] = run(made(self.out, method), f"python -m kd.incremental {method}")
        return self[method]


@pytest.fixture(scope="module")
def folders(out: Path) -> Runs:
    return Runs(out)


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", METHODS)
def test_report_of_every_method(folders: dict[str, Path], method: str) -> None:
    folder = folders[method]
    assert {path.name for path in folder.iterdir()} >= {
        "report.json",
        "report.md",
        "student.safetensors",
        "config.yaml",
        "tensorboard",
        "accuracy_matrix.png",
        "accuracy_by_task.png",
    }
    # task_1 belongs to another.
    assert {path.name for path in (folder / "tensorboard").iterdir()} >= {"task_2", "task_3"}
    report = report_of(folder)
    assert report["schema"] == 1
    assert [model["role"] for model in report["models"]] == ["student"]
    assert report["data"]["classes"] == list("0123456789")
    found = report["incremental"]
    assert found["method"] == method
    assert sorted(name for task in found["tasks"] for name in task) == list("0123456789")
    assert [len(task) for task in found["tasks"]] == [4, 3, 3]
    assert found["exemplars"] == ([4 * 10, 7 * 5, 10 * 4] if method in KEEPING else [0, 0, 0])
    for kind in ("class_incremental", "task_incremental"):
        for part in (found[kind], found["validation"][kind]):
            assert [len(row) for row in part["matrix"]] == [1, 2, 3]
            assert len(part["after"]) == 3
            assert all(0 <= value <= 1 for row in part["matrix"] for value in row)
    words = (folder / "report.md").read_text()
    assert f"final accuracy {100 * found['class_incremental']['final']:.1f}" in words
    assert "| after task 3 |" in words


@pytest.mark.parametrize("method", ["lwf", "wa"])
def test_the_matrix_is_what_the_stages_nets_say(
    folders: dict[str, Path], out: Path, method: str
) -> None:
    report = report_of(folders[method])
    schedule = TaskSchedule(made(out, method), construct(made(out, method).data, "data"))
    order = [int(name) for task in report["incremental"]["tasks"] for name in task]
    assert order == schedule.source.order
    test, starts = schedule.source.data.split.test, [0, 4, 7, 10]
    for i, key in enumerate(report["incremental"]["stages"]):
        net = load_net(Store(out / "store").find(key))  # type: ignore[arg-type]
        chosen = predict_logits(net, schedule.source.data, test)
        for j in range(i + 1):
            mine_are = order[starts[j] : starts[j + 1]]
            mine = torch.isin(test.labels, torch.tensor(mine_are))
            among_all = torch.tensor(order)[chosen.argmax(1)] == test.labels
            told = (
                torch.tensor(mine_are)[chosen[:, starts[j] : starts[j + 1]].argmax(1)]
                == test.labels
            )
            row = [
                report["incremental"][kind]["matrix"][i][j]
                for kind in ("class_incremental", "task_incremental")
            ]
            assert row == pytest.approx(
                [float(each[mine].double().mean()) for each in (among_all, told)]
            )


def test_the_nearest_mean_is_that_of_the_exemplars(folders: dict[str, Path], out: Path) -> None:
    found = report_of(folders["icarl"])["incremental"]
    schedule = TaskSchedule(made(out, "icarl"), construct(made(out, "icarl").data, "data"))
    done = [Store(out / "store").find(key) for key in found["stages"]]
    last = schedule.source.until(2)
    kept = schedule.memory.images(done)  # type: ignore[arg-type]
    assert [len(each) for each in kept] == [4] * 10
    # Chosen by the net that had just learned the class.
    for place, stage in ((0, done[0]), (5, done[1])):
        mine = last.split.train.at((last.split.train.labels == place).nonzero()[:, 0])
        features = features_of(stage, last, mine)  # type: ignore[arg-type]
        nearest = (features - features.mean(0)).norm(dim=1).argmin()
        assert torch.equal(kept[place].pixels[:1], mine.pixels[nearest[None]])
    means = torch.stack([features_of(done[-1], last, each).mean(0) for each in kept])  # type: ignore[arg-type]
    means = means / means.norm(dim=1, keepdim=True)
    features = features_of(done[-1], last, last.split.test)  # type: ignore[arg-type]
    assert torch.allclose(
        features.norm(dim=1), torch.ones(len(features), dtype=torch.float64), atol=1e-6
    )
    chosen = torch.stack([((f - means) ** 2).sum(1).argmin() for f in features])
    accuracy = float((chosen == last.split.test.labels).double().mean())
    assert found["class_incremental"]["final"] == pytest.approx(accuracy)


def test_the_file_is_the_last_net_under_the_datas_own_order(folders: dict[str, Path]) -> None:
    for method in ("lwf", "wa"):
        finished = open_run(folders[method])
        data = finished.data()
        logits = predict_logits(finished.net("student"), data, data.split.test)
        accuracy = float((logits.argmax(1) == data.split.test.labels).double().mean())
        assert accuracy == pytest.approx(finished.report.models[0].test.accuracy)
        assert accuracy == pytest.approx(finished.report.incremental.class_incremental.final)


def test_the_first_task_is_shared_and_another_weight_goes_on_from_it(
    folders: dict[str, Path], out: Path
) -> None:
    stages = {method: report_of(folders[method])["incremental"]["stages"] for method in METHODS}
    assert len({keys[0] for method, keys in stages.items() if method != "icarl"}) == 1
    assert stages["icarl"][0] != stages["lwf"][0]  # its outputs are sigmoids from the start
    assert len({keys[1] for keys in stages.values()}) == len(METHODS)
    before = {path.name for path in (out / "store").iterdir() if path.is_dir()}
    again = report_of(run(made(out, "lwf", "incremental.weight=3"), ""))["incremental"]["stages"]
    assert again[0] == stages["lwf"][0]
    assert not set(again[1:]) & set(stages["lwf"])
    assert {path.name for path in (out / "store").iterdir() if path.is_dir()} - before == set(
        again[1:]
    )
    assert report_of(run(made(out, "lwf"), ""))["incremental"]["stages"] == stages["lwf"]


def test_growth_keeps_old_logits_through_the_stages(folders: dict[str, Path], out: Path) -> None:
    """A task trained for 0 epochs keeps the old classes' logits bit for bit."""
    stages = report_of(folders["lwf"])["incremental"]["stages"]
    schedule = TaskSchedule(made(out, "lwf"), construct(made(out, "lwf").data, "data"))
    done = [Store(out / "store").find(key) for key in stages[:2]]
    still = TaskSchedule(made(out, "lwf", "epochs=0"), schedule.source.data)
    data = still.data(done)  # type: ignore[arg-type]
    after, _ = complete(still.stage(data, done), Store(out / "store"), data)  # type: ignore[arg-type]
    test = schedule.source.data.split.test
    old = predict_logits(load_net(done[1]), schedule.source.data, test)  # type: ignore[arg-type]
    assert torch.equal(predict_logits(load_net(after), schedule.source.data, test)[:, :7], old)


def test_alignment_is_in_the_weights(folders: dict[str, Path], out: Path) -> None:
    def norms(method: str) -> list[float]:
        key = report_of(folders[method])["incremental"]["stages"][1]
        weights = load_file(out / "store" / key / "weights.safetensors")
        return [float(weights[f"net.fc.layers.{i}.weight"].norm(dim=1).mean()) for i in range(2)]

    old, new = norms("wa")
    assert new == pytest.approx(old, rel=1e-5)
    old, new = norms("lwf")
    assert new != pytest.approx(old, rel=1e-2)


def test_alignment_says_by_how_much(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(made(out, "wa", "epochs=1"), "")
    said = re.findall(
        r"(task_\d): the new classes' weights times (\d+\.\d\d)", capsys.readouterr().err
    )
    assert [task for task, _ in said] == ["task_2", "task_3"]
    assert all(0.1 < float(factor) < 10 for _, factor in said)


def test_stored_logits_are_of_the_net_that_had_just_learned_the_class(
    folders: dict[str, Path], out: Path
) -> None:
    stages = report_of(folders["der"])["incremental"]["stages"]
    schedule = TaskSchedule(made(out, "der"), construct(made(out, "der").data, "data"))
    done = [Store(out / "store").find(key) for key in stages[:2]]
    data = schedule.data(done)  # type: ignore[arg-type]
    stage = schedule.stage(data, done)  # type: ignore[arg-type]
    train, new = data.split.train, len(schedule.source.task(2).split.train)
    assert stage.stored is not None
    assert stage.stored.shape == (len(train), 7)
    assert new + 7 * 5 == len(train)
    assert stage.stored[:new].isnan().all()
    for labels, row in ((range(4), 0), (range(4, 7), 1)):
        mine = [i for i in range(new, len(train)) if int(train.labels[i]) in labels]
        assert len(mine) == 5 * len(labels)
        said = predict_logits(load_net(done[row]), data, train.at(mine))  # type: ignore[arg-type]
        width = said.shape[1]
        assert torch.allclose(stage.stored[mine][:, :width], said, atol=1e-5)
        assert stage.stored[mine][:, width:].isnan().all()


class StoppedError(Exception):
    """A crash."""


@pytest.mark.parametrize("method", ["icarl", "der", pytest.param("wa", marks=pytest.mark.slow)])
def test_stopped_in_the_third_task_it_ends_with_the_same_weights(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    epoch_end = History.on_train_epoch_end

    def stop(self: History, trainer: Any, pl_module: Any) -> None:
        epoch_end(self, trainer, pl_module)
        # In the second epoch, before its checkpoint
        if self.name == "task_3" and len(self.rows) == 2:
            raise StoppedError

    monkeypatch.setattr(History, "on_train_epoch_end", stop)
    with pytest.raises(StoppedError):
        run(made(tmp_path, method), "")
    monkeypatch.undo()
    partial = list((tmp_path / "store").glob("*.partial/last.ckpt"))
    assert len(partial) == 1
    said: list[str] = []
    monkeypatch.setattr("kd.training.fit.say", said.append)
    folder = run(made(tmp_path, method), "")
    assert any(
        "task_3: training for 2 epochs, from the last finished epoch" in line for line in said
    )
    assert not any("task_2" in line for line in said)
    again, whole = (
        load_file(folder / "student.safetensors"),
        load_file(folders[method] / "student.safetensors"),
    )
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert (
        report_of(folder)["incremental"]["stages"]
        == report_of(folders[method])["incremental"]["stages"]
    )


def test_listed_tasks_may_leave_classes_out(out: Path) -> None:
    folder = run(made(out, "lwf", "incremental.tasks=[[3,1],[8]]", "epochs=1"), "")
    report = report_of(folder)
    assert report["incremental"]["tasks"] == [["3", "1"], ["8"]]
    assert report["data"]["classes"] == ["1", "3", "8"]
    assert open_run(folder).net("student")(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert len(report["models"][0]["test"]["confusion"]) == 3


def test_exemplars_are_part_of_any_method(out: Path) -> None:
    config = made(out, "finetune", "incremental.exemplars=3", "incremental.exemplars_per=class")
    schedule = TaskSchedule(config, construct(config.data, "data"))
    keys = report_of(run(config, ""))["incremental"]["stages"]
    done = [Store(out / "store").find(key) for key in keys]
    train = schedule.data(done[:2]).split.train  # type: ignore[arg-type]
    counts = torch.bincount(train.labels, minlength=10).tolist()
    assert counts[:7] == [3] * 7
    assert min(counts[7:]) > 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [*CRLD, "data.augment.mixup=0.2"],
            r"data\.augment\.mixup: found 0\.2; a loss with two views of an image takes 0",
        ),
        (CRLD, r"loss: crld does not support .* \(7 of 10: The size of tensor"),
        (["loss=fitnet", *CRLD[1:]], "loss: fitnet compares features, and a net that grows shows"),
        (["optim=dot", "gradient_clip=1.0"], r"gradient_clip: found 1\.0; optim=dot needs"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(
    words: list[str], said: str, out: Path
) -> None:
    config = made(out, "lwf", *words)
    with pytest.raises(UserError, match=f"^{said}"):
        preflight(TaskSchedule(config, construct(config.data, "data")))


@pytest.mark.slow
def test_a_sweep_over_methods_and_seeds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "-m",
        *TINY,
        f"output_dir={tmp_path}",
        "incremental.method=lwf,icarl",
        "seed=0,1",
        "incremental.tasks=2",
    ]
    words += ["epochs=1"]
    assert exit_code("incremental", *words) == 0
    assert "Ranked by validation" in capsys.readouterr().out
    (sweep,) = (tmp_path / "sweeps").iterdir()
    reports = [json.loads(path.read_text()) for path in sweep.glob("*/report.json")]
    assert sorted((each["incremental"]["method"], each["seed"]) for each in reports) == [
        ("icarl", 0),
        ("icarl", 1),
        ("lwf", 0),
        ("lwf", 1),
    ]
    orders = {tuple(map(tuple, each["incremental"]["tasks"])) for each in reports}
    assert len(orders) == 2  # the order goes with the seed
    assert all(each["command"].startswith("python -m kd.incremental ") for each in reports)
    assert exit_code("incremental", *words) == 0
    assert "4 jobs in" in (said := capsys.readouterr().err)
    assert "4 of them done" in said
    text = write_summary([sweep])
    lines = [
        line.split(" | ")
        for line in text.splitlines()
        if re.match(r"\| \d \| (lwf|icarl) \| 2 ", line)
    ]
    assert len(lines) == 2
    for _, method, _, average, *_ in lines:
        values = [each["incremental"]["class_incremental"]["average"] for each in reports]
        mine = [
            100 * v
            for v, each in zip(values, reports, strict=True)
            if each["incremental"]["method"] == method
        ]
        assert average == f"{sum(mine) / 2:.1f} ± {abs(mine[0] - mine[1]) / 2**0.5:.1f}"
    assert "Accuracy after each task" in (sweep / "summary.html").read_text()


def test_help_and_a_misspelt_key_do_without_torch() -> None:
    code = (
        "import sys, kd.incremental; print([m for m in ('torch', 'lightning', 'matplotlib') if m "
        "in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
