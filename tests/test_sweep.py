"""A sweep as a user sees it: folders, lines, exit codes; what is repeated and what is not."""

import functools
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composed import CONF, METHODS, TINY, composed, loss_node
from hydra import compose, initialize_config_dir
from made_reports import made_report, model
from omegaconf import OmegaConf
from processes import Process
from safetensors.torch import load_file

import kd.runs.sweep
from kd.config.schema import check
from kd.errors import UnusedError, UserError
from kd.files.report_file import Report
from kd.runs.names import overrides_of, sweep_name
from kd.runs.ranking import RankingRow, rank_runs
from kd.runs.sweep import Entry, ask_ray_for_gpus, batches
from kd.stages.code_hash import code_of
from kd.train import start
from kd.training.loss_spec import read_loss

PAIR = ("model=mlp_to_mlp", *TINY, "epochs=1", "teacher.epochs=1")
GRID = ("temperature=1,2,4,8", "alpha=0.1,0.5,0.9")
ROOT = Path(__file__).parents[1]


class Ran:
    """Result of a command in this process."""

    def __init__(
        self, out: Path, capture: pytest.CaptureFixture[str], arguments: tuple[str, ...]
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            flags = [word for word in arguments if word == "-m"]  # which come first
            words = [*PAIR, f"output_dir={out}", *(word for word in arguments if word != "-m")]
            patch.setattr(sys, "argv", ["kd.train", *flags, *words])
            with pytest.raises(SystemExit) as end:
                start()
        self.code = int(end.value.code or 0)
        self.out, self.err = capture.readouterr()
        self.sweeps = sorted((out / "sweeps").glob("*"))

    @property
    def sweep(self) -> Path:
        (only,) = self.sweeps
        return only

    @property
    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.sweep.glob("*/report.json"))


@pytest.fixture
def sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *arguments: Ran(tmp_path / "out", capsys, arguments)


def process(out: Path, *arguments: str) -> Process:
    """Run a sweep in its own process; its children find the packages beside the tests too."""
    return Process(
        "kd.train", "-m", *PAIR, f"output_dir={out}", *arguments,
        environment={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{out}"},
    )  # fmt: skip


def stages(out: Path, name: str) -> list[Path]:
    """Return the finished stages of this name in the store."""
    files = (out / "store").glob("*/stage.json")
    return [file.parent for file in files if json.loads(file.read_text())["name"] == name]


@pytest.mark.slow
def test_twelve_jobs_then_the_same_again(sweep: Any, tmp_path: Path) -> None:
    first = sweep("-m", *GRID)
    assert first.code == 0, first.err
    assert {path.name for path in first.runs} == {
        f"digits_few_mlp_to_mlp_kd_T{t}_a{a}_s0"
        for t in ("1.0", "2.0", "4.0", "8.0")
        for a in ("0.1", "0.5", "0.9")
    }
    assert first.sweep.name.startswith("digits_few_mlp_to_mlp_kd_temperature_alpha_")
    assert re.findall(
        r"^\[(\d+)/12\] temperature=\d alpha=0.\d: student ", first.err, re.M
    ) == list(map(str, range(1, 13)))
    for run in first.runs:
        files = {path.name for path in run.iterdir()}
        assert files >= {
            "report.json",
            "report.md",
            "student.safetensors",
            "config.yaml",
            "tensorboard",
        }
    out = tmp_path / "out"
    assert [len(stages(out, name)) for name in ("teacher", "baseline", "distill")] == [1, 1, 12]
    assert not (out / "runs").exists()
    table = first.out.splitlines()
    assert f"kd.dashboard {first.sweep}" in table[-1]
    rows = [re.split(r" {2,}", line.strip()) for line in table if re.match(r" *\d+ ", line)]
    of_runs = {}
    for run in first.runs:
        report = json.loads((run / "report.json").read_text())
        student = next(model for model in report["models"] if model["role"] == "student")
        label = (
            f"temperature={report['config']['temperature']:.0f} alpha={report['config']['alpha']}"
        )
        of_runs[label] = [
            f"{100 * student['val']['best']:.2f}",
            f"{100 * student['test']['accuracy']:.2f}",
        ]
    assert {row[1]: row[2:4] for row in rows} == of_runs
    assert [float(row[2]) for row in rows] == sorted(
        (float(val) for val, _ in of_runs.values()), reverse=True
    )

    before = {path: path.stat().st_mtime_ns for path in first.sweep.rglob("*") if path.is_file()}
    again = sweep("-m", *GRID)
    assert again.code == 0
    assert again.sweep == first.sweep
    assert again.err.count("done before") == 12
    assert {
        path: path.stat().st_mtime_ns for path in again.sweep.rglob("*") if path.is_file()
    } == before
    assert sorted(again.out.splitlines()) == sorted(first.out.splitlines())


def test_a_failing_job_stops_no_other_and_is_tried_again(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kd.runs.run

    report, broken = kd.runs.run.make_report, [True]

    def fails_at_two(*args: Any, **options: Any) -> Any:
        if broken[0] and options["config"].temperature == 2:
            raise ZeroDivisionError("a defect\nof ours")
        return report(*args, **options)

    monkeypatch.setattr(kd.runs.run, "make_report", fails_at_two)
    first = sweep("-m", "temperature=1,2,0,4")
    assert first.code == 1
    assert [path.name for path in first.runs] == [
        f"digits_few_mlp_to_mlp_kd_T{t}_a0.5_s0" for t in ("1.0", "4.0")
    ]
    assert [path for path in first.sweep.iterdir() if path.name.endswith(".partial")] == []
    assert "2 of 4 jobs failed" in first.err
    assert "temperature=2: ZeroDivisionError: a defect" in first.err
    assert "temperature=0: temperature: found 0.0, accepted is a number above 0" in first.err
    logs = [Path(line) for line in re.findall(r"log: (.*)", first.err)]
    assert len(logs) == 2
    text = {log.name: log.read_text() for log in logs}
    assert "ZeroDivisionError: a defect" in text["digits_few_mlp_to_mlp_kd_T2.0_a0.5_s0.log"]
    assert "Traceback" in text["digits_few_mlp_to_mlp_kd_T2.0_a0.5_s0.log"]
    assert "found 0.0" in text["temperature-0.log"]
    assert "Traceback" not in first.err

    broken[0] = False
    again = sweep("-m", "temperature=1,2,0,4")
    assert again.code == 1
    assert again.err.count("done before") == 2
    assert "[2/4] temperature=2: student" in again.err
    assert "ZeroDivision" not in again.err + logs[0].read_text() + logs[1].read_text()
    assert len(again.runs) == 3


def test_a_mistake_that_all_jobs_share_ends_at_once(sweep: Any) -> None:
    for arguments, words in (
        (("temprature=1,2",), "temprature: no such key; did you mean 'temperature'?"),
        (("temperature=0,-1",), "temperature: found 0.0, accepted is a number above 0"),
        (("epochs=x", "seed=0,1"), "epochs: found 'x'"),
        (("loss=kdd,nkdd",), "loss: there is no 'kdd'"),
        (("temperature=1,2", "loss=mse_logits"), "temperature: the chosen loss does not use it"),
    ):
        ran = sweep("-m", *arguments)
        assert ran.code == 2
        assert words in ran.err
        assert len(ran.err.splitlines()) == 1
        assert ran.sweeps == []


def test_without_m_the_message_says_so(sweep: Any) -> None:
    ran = sweep("temperature=1,2")
    assert ran.code == 2
    assert "add -m to sweep over the values" in ran.err


def test_a_damaged_report_or_record_is_made_again_and_a_later_one_refused(sweep: Any) -> None:
    words = ("-m", "seed=0,1", "stages=[baseline]")
    first = sweep(*words)
    report = first.runs[0] / "report.json"
    (log, other) = sorted((first.sweep / "logs").glob("*.json"))
    report.write_text(report.read_text().replace('"accuracy": 0.', '"accuracy": 9.', 1))
    again = sweep(*words)
    assert again.code == 0
    assert "2 jobs in" in again.err
    assert f"seed=0: {report} is damaged, or no report of kd: models.0.test.accuracy" in again.err
    assert ", 1 of them done;" in again.err
    assert "[1/2] seed=0: baseline" in again.err
    assert json.loads(log.read_text())["schema"] == 1
    log.write_text(log.read_text().replace('"error": null', '"error": true'))
    assert ", 1 of them done;" in sweep(*words).err
    other.write_text(json.dumps(json.loads(other.read_text()) | {"schema": 9}))
    later = sweep(*words)
    assert later.code == 2
    assert later.err == f"kd: {other} was written by a later kd (schema 9; this one reads 1)\n"


@pytest.mark.slow
def test_results_of_another_config_or_code_do_not_count(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ("-m", "name=mine", "stages=[baseline]")
    assert sweep(*one, "seed=1,2").code == 0
    more = sweep(*one, "seed=1,2,3", "debug=true")
    assert (more.sweep.name, more.err.count("done before")) == ("mine", 2)
    other = sweep(*one, "seed=1,2,3", "batch_size=40")
    assert other.err.count("done before") == 0
    configs = [json.loads((run / "report.json").read_text())["config"] for run in other.runs]
    assert [config["batch_size"] for config in configs] == [40, 40, 40]
    assert sweep(*one, "seed=1,2,3", "batch_size=40").err.count("done before") == 3
    monkeypatch.setattr("kd.runs.job.code_of", lambda *nodes: {"kd.losses.kd": "edited"})
    assert sweep(*one, "seed=1,2,3", "batch_size=40").err.count("done before") == 0


@pytest.mark.slow
def test_force_does_all_again_and_shared_stages_once(sweep: Any, tmp_path: Path) -> None:
    assert sweep("-m", "temperature=1,2").code == 0
    (teacher,) = stages(tmp_path / "out", "teacher")
    first = json.loads((teacher / "stage.json").read_text())["finished"]
    forced = sweep("-m", "temperature=1,2", "force=true")
    assert forced.err.count("done before") == 0
    said = "".join(log.read_text() for log in sorted(forced.sweep.glob("logs/*.log")))
    assert (said.count("teacher: trained"), said.count("distill: trained")) == (1, 2)
    assert json.loads((teacher / "stage.json").read_text())["finished"] > first


@pytest.mark.slow
def test_a_job_is_the_same_bit_for_bit_as_the_run_alone(sweep: Any, tmp_path: Path) -> None:
    # One process; ctkd draws its own weights.
    ran = sweep("-m", "temperature=1,4", "loss=ctkd,kd")
    assert ran.err.count("left out of the sweep: ") == 2  # ctkd learns its temperature
    ran = sweep("-m", "name=both", "loss=ctkd,kd", "seed=0,1")
    last = ran.sweeps[-1] if ran.sweeps[-1].name == "both" else ran.sweeps[0]
    (job,) = last.glob("*loss-kd*_s1")
    report = json.loads((job / "report.json").read_text())
    words = shlex.split(report["command"])
    assert words[:3] == ["python", "-m", "kd.train"]
    assert "-m" not in words[3:]
    assert Process(*words[2:], f"output_dir={tmp_path / 'alone'}").wait().returncode == 0
    (alone,) = (tmp_path / "alone" / "runs").iterdir()
    a, b = (load_file(folder / "student.safetensors") for folder in (job, alone))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_jobs_whose_usual_names_are_the_same_get_names_of_their_own(sweep: Any) -> None:
    ran = sweep("-m", "optim.lr=0.01,0.02", "student.net.hidden=[8],[4,4]", "stages=[baseline]")
    assert ran.code == 0
    names = [path.name for path in ran.runs]
    stem = "digits_few_mlp_to_mlp_kd_T2.0_a0.5_hidden"
    assert names == [f"{stem}-{hidden}_lr-0.0{lr}_s0" for hidden in ("4-4", "8") for lr in (1, 2)]
    for run in ran.runs:
        assert json.loads((run / "report.json").read_text())["name"] == run.name


def test_interrupted_it_ends_with_the_line_that_resumes(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kd.runs.run

    def stopped(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kd.runs.run, "make_report", stopped)
        ran = sweep("-m", "temperature=1,2")
    assert ran.code == 130
    assert "python -m kd.train" in ran.err
    assert ran.runs == []
    assert len(sweep("-m", "temperature=1,2").runs) == 2


EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))


def test_the_presets_ship() -> None:
    assert SWEEPS == ["labels", "methods", "seeds", "students", "temperature_alpha"]


# Their stages belong to one method, with neither temperature nor alpha; no other can replace it.
OF_ONE_METHOD = {"ft", "fsp", "foundation_to_small"}
WEIGHTS = {"chest_xray_few_labels": ["teacher.path=weights.pth"]}  # without a file it says so


@functools.cache
def swept_by(name: str) -> dict[str, list[str]]:
    """Return the values of each key that a preset sweeps."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"sweep={name}"], return_hydra_config=True)
        assert config.hydra.mode.name == "MULTIRUN"
        return {
            each.key_or_group: list(each.sweep_string_iterator())
            for each in overrides_of(config)
            if each.is_sweep_override()
        }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_preset_composes_with_every_experiment(experiment: str) -> None:
    for i, name in enumerate(SWEEPS):
        swept = swept_by(name)
        assert all(len(options) > 1 for options in swept.values())
        which = -(i % 2)  # the first values or the last
        chosen = {key: options[which] for key, options in swept.items()}
        words = [f"{key}={value}" for key, value in chosen.items()]
        own = WEIGHTS.get(experiment, [])
        cfg = composed(f"experiment={experiment}", f"sweep={name}", *words, "data=digits", *own)
        typed = OmegaConf.to_container(cfg)
        for key in chosen.keys() - {"loss", "student", "data.labels"}:
            assert str(typed[key]) == chosen[key]
        try:
            check(cfg, list(chosen))
        except UnusedError:
            assert "loss" in chosen or experiment in OF_ONE_METHOD
        except UserError:
            assert "loss" in chosen
            assert experiment in OF_ONE_METHOD


def test_the_command_line_wins_over_a_preset(sweep: Any) -> None:
    ran = sweep("sweep=seeds", "seed=3,4", "stages=[baseline]")
    assert ran.code == 0
    assert [path.name[-3:] for path in ran.runs] == ["_s3", "_s4"]
    assert "mean ± standard deviation over 2 seeds" in " ".join(ran.out.split())


def test_a_method_without_use_for_a_swept_knob_is_left_out(sweep: Any) -> None:
    ran = sweep("-m", "loss=mse_logits,kd", "temperature=2,3")
    assert ran.code == 0
    assert ran.err.count("left out of the sweep: loss=mse_logits temperature=") == 2
    assert len(ran.runs) == 2


def test_the_folders_name_is_that_of_the_sweep() -> None:
    def name(*overrides: str, params: Any = None) -> str:
        choices = {
            "data": "digits",
            "teacher": "resnet18",
            "student": "cnn",
            "loss": "kd",
            "experiment": None,
        }
        hydra = {"overrides": {"task": list(overrides)}, "runtime": {"choices": choices}}
        return sweep_name(
            _root_=OmegaConf.create({"hydra": {**hydra, "sweeper": {"params": params}}})
        )

    one = name("temperature=1,2", "seed=0")
    assert re.fullmatch(r"digits_resnet18_to_cnn_kd_temperature_[0-9a-f]{6}", one)
    assert one == name("seed=0", "temperature=1,2", "force=true", "debug=true", "output_dir=x")
    assert one == name("seed=0", "temperature=1,2", "logger=csv", "logger.csv.name=mine")
    assert one != name("temperature=1,2", "seed=1")
    assert re.fullmatch(r"digits_resnet18_kd_student_[0-9a-f]{6}", name("student=mlp,cnn"))
    assert re.fullmatch(r"digits_kd_model_[0-9a-f]{6}", name("model=mlp_to_mlp,resnet34_to_cnn"))
    assert re.fullmatch(r"resnet18_to_cnn_kd_data_[0-9a-f]{6}", name("data=digits,mnist"))
    assert name("temperature=1,2", "name=mine") == "mine"
    assert name(params={"seed": "0,1"}) == name("seed=0,1")


def test_rank_is_by_the_mean_over_seeds_on_validation() -> None:
    def report(val: float, test: float, gain: float | None) -> Report:
        models = [
            model("teacher", val={"best": 1.0}, test={"accuracy": 1.0}),
            model("student", val={"best": val}, test={"accuracy": test}),
        ]
        return made_report(*models, comparison={"gain": gain})

    rows = rank_runs(
        [
            (("alpha=0", "seed=0"), report(0.7, 0.9, None)),
            (("alpha=1", "seed=0"), report(0.9, 0.5, 0.1)),
            (("alpha=1", "seed=1"), report(0.6, 0.7, 0.3)),
        ]
    )
    # 0.75 before 0.7, whatever their test accuracies.
    assert [row.label for row in rows] == ["alpha=1", "alpha=0"]
    assert rows[0] == RankingRow("alpha=1", val=[0.9, 0.6], test=[0.5, 0.7], gain=[0.1, 0.3])
    assert rows[1].gain == []


def test_code_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "not_to_be_imported" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "huber.py").write_text("class Huber: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [
        set(code_of({"_target_": f"not_to_be_imported.inner{end}"}))
        for end in (".huber.Huber.of", ".Thing")
    ]
    assert names == [{"not_to_be_imported.inner.huber"}, {"not_to_be_imported.inner"}]
    own = code_of({"_target_": "kd.nets.resnet.ResNet"})
    assert set(own) == {"kd.nets.resnet"}, "what it imports of kd is RECIPE's"
    assert (
        code_of(
            {"_target_": "torch.nn.Linear"},
            {"_target_": "no.such.thing"},
            {"_target_": "print"},
            {},
        )
        == {}
    )


def test_a_finished_sweep_is_told_without_torch(tmp_path: Path, sweep: Any) -> None:
    arguments = ("-m", "temperature=1,2")
    assert sweep(*arguments).code == 0
    code = (
        "import sys; sys.argv = ['kd.train', *sys.argv[1:]]\n"
        "from kd.train import start\n"
        "try: start()\n"
        "finally: print('torch' in sys.modules)\n"
    )
    line = [
        sys.executable,
        "-c",
        code,
        "-m",
        *PAIR,
        f"output_dir={tmp_path / 'out'}",
        *arguments[1:],
    ]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.count("done before") == 2
    assert done.stdout.splitlines()[-1] == "False"


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None,
    reason="no hydra-ray-launcher (pip install kd[ray]), which needs an older cloudpickle",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("joblib", "hydra.launcher.n_jobs=2"),
        ("submitit_local",),
        pytest.param(("ray", "+hydra.launcher.ray.init.num_cpus=2"), marks=needs_ray),
    ],
    ids=lambda words: words[0],
)
def test_jobs_in_parallel_share_the_teacher(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    nets = "student.net.hidden=[8],[4],[-1]"
    arguments = (nets, f"hydra/launcher={launcher[0]}", *launcher[1:])
    ran = process(tmp_path, *arguments).wait()
    assert ran.returncode == 1, ran.stderr
    assert len(re.findall(r"^\[\d/3\] .*: student ", ran.stderr, re.M)) == 2
    assert len(re.findall(r"^\[\d/3\] .*: failed: student.net: ", ran.stderr, re.M)) == 1
    said = "".join(log.read_text() for log in tmp_path.glob("sweeps/*/logs/*.log"))
    assert said.count("teacher: trained") == 1
    assert len(stages(tmp_path, "teacher")) == 1
    commands = [
        json.loads(file.read_text())["command"] for file in tmp_path.glob("sweeps/*/*/report.json")
    ]
    assert len(commands) == 2
    assert all(each.startswith("python -m kd.train model=mlp_to_mlp") for each in commands)
    if launcher[0] == "joblib":
        assert process(tmp_path, *arguments).wait().stderr.count("done before") == 2


@pytest.mark.slow
def test_a_killed_process_of_the_pool_takes_no_other_job_with_it(tmp_path: Path) -> None:
    (tmp_path / "killer.py").write_text(
        "import os, signal\nfrom kd.nets.mlp import MLP\n"
        "def build(**options):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    nets = "student.net._target_=killer.build,kd.nets.mlp.MLP"
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = process(tmp_path, "stages=[baseline]", nets, *launcher).wait()
    assert done.returncode == 1, done.stderr
    assert len(list(tmp_path.glob("sweeps/*/*/report.json"))) == 1
    assert "1 of 2 jobs failed" in done.stderr
    assert "its process died" in done.stderr


@pytest.mark.slow
def test_killed_and_started_again_and_twice_at_once(tmp_path: Path) -> None:
    arguments = ("temperature=1,2,4", "epochs=30", "student.net.hidden=[64,64]")
    first = process(tmp_path, *arguments)
    assert any(line.startswith("[1/3]") for line in first.lines())
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    assert first.wait().returncode == -signal.SIGKILL
    both = [process(tmp_path, *arguments) for _ in range(2)]
    assert [each.wait().returncode for each in both] == [0, 0], [each.stderr for each in both]
    assert all("[1/3] temperature=1: done before" in each.stderr for each in both)
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert len(list(folder.glob("*/report.json"))) == 3
    assert list(folder.glob("*.partial")) == []
    assert len(stages(tmp_path, "distill")) == 3


def test_what_several_devices_cannot_do_is_refused_with_the_way_that_works(sweep: Any) -> None:
    two = ("trainer.accelerator=cpu", "trainer.devices=2")
    for arguments, words in (
        ((*two, "trainer.strategy=fsdp"), "trainer.strategy: found 'fsdp' on a cpu; it spreads"),
        ((*two, "batch_size=51"), "batch_size: found 51, of which 2 devices have no equal shares"),
        (
            ("-m", "seed=0,1", "trainer=ddp", "hydra/launcher=joblib"),
            "trainer.devices: found 2 with hydra/launcher=joblib",
        ),
    ):
        ran = sweep(*arguments)
        assert ran.code == 2, ran.err
        assert words in ran.err


def test_forked_processes_beside_threads_are_refused(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would wait forever for threads that their copy lacks."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    ran = sweep(
        "trainer=ddp", "trainer.accelerator=cpu", "trainer.strategy=ddp_fork", "stages=[baseline]"
    )
    assert ran.code == 2, ran.err
    assert "trainer.strategy: found 'ddp_fork' with 2 threads" in ran.err


@pytest.mark.slow
def test_several_devices_in_a_sweep(tmp_path: Path) -> None:
    """The test part too is shared: 449 images are eight batches, of which rank 1 has the last four.

    Its processes are forked, see `test_ranks.py` for spawned ones.
    """
    (tmp_path / "asked.py").write_text(
        "import os\nfrom kd.nets.mlp import MLP\n"
        "class Asked(MLP):\n"
        "    def forward(self, x):\n"
        f"        name = f'{tmp_path}/rank{{os.environ.get(\"RANK\")}}'\n"
        "        with open(name, 'a') as file: file.write(f'{len(x)} ')\n"
        "        return super().forward(x)\n"
    )
    net = ("student.net._target_=asked.Asked", "stages=[baseline]")
    two = ("trainer=ddp", "trainer.strategy=ddp_fork", "trainer.accelerator=cpu", "batch_size=20")
    ran = process(tmp_path, *two, *net, "data/augment=strong", "seed=0,1").wait()
    assert ran.returncode == 0, ran.stderr
    assert len(list(tmp_path.glob("sweeps/*/*/report.json"))) == 2
    logs = [log.read_text() for log in tmp_path.glob("sweeps/*/logs/*.log")]
    assert all("baseline: trained" in log for log in logs)
    assert (tmp_path / "rank1").read_text().endswith(" 64 64 64 1 ")


def test_sweep_methods_is_every_loss_that_kd_train_accepts() -> None:
    accepted = [
        name
        for name in set(METHODS) - {"mld"}  # METHODS are without the one for a transformer
        if not any(term.command for term in read_loss(loss_node(name)).terms)
    ]
    swept = swept_by("methods")
    assert sorted(swept["loss"]) == sorted(accepted)
    assert swept["seed"] == ["0", "1", "2", "3", "4"]


def test_a_large_sweep_says_first_what_it_will_do(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kd.runs.sweep, "SOON", 0.0)
    ran = sweep("-m", "temperature=1,2,4", "seed=0,1", "epochs=-1")
    assert ran.code == 2
    first = ran.err.splitlines()[0]
    assert first.startswith("6 jobs (values: 2 of seed, 3 of temperature), to be run one after ")


@pytest.mark.parametrize("size", [1, 4, 400])
@pytest.mark.parametrize("count", [100, 400])
def test_each_job_is_probed_once(count: int, size: int) -> None:
    """Of 400, every tenth runs elsewhere: those come last, in their order."""
    probed = []

    def entry(number: int) -> Entry:
        def runs_elsewhere() -> bool:
            probed.append(number)
            return number % 10 == 0

        job: Any = SimpleNamespace(runs_elsewhere=runs_elsewhere)
        return Entry(number, (), (), job=job)

    found = list(batches([entry(number) for number in range(count)], size))
    assert probed == list(range(count))
    assert {len(each) for each in found} == {min(size, count)}
    order = [each.number for batch in found for each in batch]
    assert order == sorted(range(count), key=lambda number: (number % 10 == 0, number))


@pytest.mark.parametrize(("typed", "asked"), [({}, 2), ({"num_gpus": 0.5}, 0.5)])
def test_ray_is_asked_for_the_gpus_of_a_job(
    typed: dict[str, float], asked: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray hides all GPUs from a task that asks for none."""
    remote = OmegaConf.create(typed)
    OmegaConf.set_struct(remote, True)
    config = check(composed("trainer.devices=2"))
    ask_ray_for_gpus(remote, [Entry(1, (), (), config=config)])
    assert remote == typed  # here is none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ask_ray_for_gpus(remote, [Entry(1, (), (), config=config)])
    assert remote == {"num_gpus": asked}
