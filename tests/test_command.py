"""Parsing of the command line: flags and overrides in any order, `~`, quotes, Hydra's functions."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from commands import NAMES, exit_code
from composed import TINY
from hydra.core.override_parser.overrides_parser import OverridesParser

from kd.command import tidy

HOME = "/home/somebody"

# Regular expressions for a command's help: knobs with ranges, groups with files.
TRAINS = (
    r"^  alpha=0\.5 .*\(a number from 0 to 1, or a schedule",
    r"^  temperature=2\.0 .*\(a number above 0, or a schedule",
    r"^  batch_size=\d+ +over all devices \(a whole number from 1\)",
    r"^  ema=null .*\(a number above 0 and below 1 or null\)",
    r"^  trainer.max_steps=null (.*\n)?.*\(a whole number from 1, or -1",
    r"^  data +chest_xray, cifar10",
    r"^  trainer +auto, cpu",
)
HELP = {
    "train": (
        *TRAINS,
        r"^  teacher.epochs=40 +\(a whole number from 0\)",
        r"^  sweep +labels, methods",
    ),
    "tune": (
        r"^  n_trials=20 .*\n?.*\(a whole number from 1\)",
        *TRAINS,
        r"^  search +kd, method, optim",
    ),
    "compare": (
        r"^  n_trials=10 (.*\n)?.*\(a whole number from 0\)",
        *TRAINS,
        r"^  search +kd, method",
    ),
    "incremental": (
        r"^  incremental.exemplars=0 .*from 0\)",
        *TRAINS,
        r"^  incremental/method +der",
    ),
    "evaluate": (r"^  run +a finished", r"^  severities=", r"^  data +chest_xray"),
    "benchmark": (r"^  run +a finished", r"^  seconds=1\.0 .*\n?.*\(a number above 0\)"),
    "export": (r"^  run +a finished", r"^  max_loss=2\.0 (.*\n)?.*from 0\)"),
    "predict": (r"^  model  ", r"^  images  "),
    "report": (r"a run's folder", r"outputs/sweeps/SWEEP"),
    "dashboard": (r"default: ",),
    "store": (r"what no run refers to$",),
}


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("a=1 -m b=1,2", "-m a=1 b=1,2"),
        ("a=1 --cfg job b=2 --resolve", "--cfg job --resolve a=1 b=2"),
        ("a=1 --config-dir=x b=2", "--config-dir=x a=1 b=2"),
        ("a=1 -cd x b=-2", "-cd x a=1 b=-2"),
        ("a=~/x b=~ c=~x d=x~", f"a={HOME}/x b={HOME} c=~x d=x~"),
        ("~search.space.alpha a=1", "~search.space.alpha a=1"),
        ("a=1 --info", "--info a=1"),
    ],
)
def test_flags_may_follow_and_home_is_found(
    typed: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", HOME)
    assert tidy(typed.split()) == read.split()


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["teacher.path=epoch=9-step=88.ckpt"], "teacher.path", "epoch=9-step=88.ckpt"),
        (["data.root=my photos (1)"], "data.root", "my photos (1)"),
        (["data.root=my", "photos"], "data.root", "my photos"),
        (["data.root=it's"], "data.root", "it's"),
        (['data.root=a "b" (1)'], "data.root", 'a "b" (1)'),
        (["data.root=~else/x"], "data.root", "~else/x"),
    ],
)
def test_what_needs_quotes_is_answered_with_the_line_to_type(
    words: list[str], key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("train", "seed=3", *words, "epochs=1") == 2
    said = capsys.readouterr().err
    assert "http" not in said
    assert "mismatched" not in said
    *about, line = said.splitlines()
    assert about[-1].startswith(
        f"kd: {key}: Hydra cannot read {value!r}"
        if len(words) == 1
        else "kd: photos: not an override of the form KEY=VALUE; if it belongs to the value before"
    )
    # In a shell it gives the value.
    python, dash, module, *typed = shlex.split(line)
    assert (python, dash, module) == ("python", "-m", "kd.train")
    found = OverridesParser.create().parse_overrides(typed)
    assert {each.key_or_group: each.value() for each in found} == {
        "seed": 3, key: value, "epochs": 1,
    }  # fmt: skip


@pytest.mark.slow
def test_glob_finds_the_files_of_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kd.runs.sweep.Sweep._launch", lambda *_: None)
    small = ("model=mlp_to_mlp", *TINY, f"output_dir={tmp_path}")
    assert exit_code("train", *small, "-m", "loss=glob([kd*,dkd],exclude=kdsvd)") == 1
    said = capsys.readouterr().err
    assert sorted(set(re.findall(r"loss=(\w+)", said))) == [
        "dkd",
        "kd",
        "kd_dist",
        "kd_standardized",
    ]
    assert exit_code("train", *small, "loss=glob(kd*)") == 2
    assert "add -m to sweep" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("train", "data=image_folder data.root={}"),
        ("train", "data.unlabeled={}"),
        ("train", "teacher.path={}"),
        ("train", "teacher=checkpoint teacher.path={}"),
        ("train", "output_dir={}/file/out"),
        ("train", "-m seed=1,2 output_dir={}/file/out"),
        ("incremental", "output_dir={}/file/out"),
        ("tune", "output_dir={}/file/out"),
        ("evaluate", "run={}"),
        ("benchmark", "run={}"),
        ("export", "run={}"),
        ("predict", "model={} images=."),
        ("predict", "model=x images={}"),
        ("predict", "model=x images=. out={}/no/x.csv"),
        ("report", "{}"),
        ("dashboard", "{}"),
    ],
)
def test_home_is_found_in_quotes_too(
    name: str,
    typed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With `~` unexpanded by the shell, each message names the path below the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for file in ("file", "image.png"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    words = [
        re.sub(r"(.*=)(\{.*)", r'\1"\2"', word).format("~/nowhere" if "file" not in word else "~")
        if name not in ("report", "dashboard")
        else "~/nowhere"
        for word in typed.split()
    ]
    assert any("~" in word for word in words)
    assert exit_code(name, *words) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "nowhere" if "file" not in typed else tmp_path / "file" / "out") in said
    assert not list(tmp_path.rglob("~*"))


def test_help_lists_the_knobs_of_the_files_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("train", "data=image_folder", "loss=dkd", "nets=none", "--help") == 0
    said = capsys.readouterr().out
    assert "\nKnobs of data=image_folder:\n  Your own images: data=image_folder" in said
    assert re.search(r"^  data\.draft=false +true: decode large JPEGs", said, re.M)
    assert "\nKnobs of loss=dkd:\n  Zhao et al. 2022" in said
    assert "\n  loss.terms.dkd.loss.target_weight=1.0\n" in said
    assert "kd.losses" not in said.partition("Knobs of loss=dkd")[2].partition("Groups")[0]


@pytest.mark.parametrize("name", NAMES)
def test_help_has_the_commands_own_examples_knobs_and_groups(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(name, "--help") == 0
    said = capsys.readouterr().out
    found = {line: re.search(line, said, re.M) for line in (f"^python -m kd.{name} ", *HELP[name])}
    assert [line for line, match in found.items() if not match] == []
    assert min(found, key=lambda line: found[line].start()) == f"^python -m kd.{name} "  # type: ignore[union-attr]
    assert "hydra." not in said
    others = {other for other in NAMES if other != name and f"python -m kd.{other} " in said}
    assert not others
    if name not in ("predict", "incremental", "report", "dashboard", "store"):
        assert "incremental" not in said
        assert not re.search(r"^ +predict ", said, re.M)


@pytest.mark.slow
def test_tasks_of_a_slurm_step_may_not_do_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Start a second task while the first runs: an equal config is refused, another seed is not."""
    codes: dict[str, int] = {}

    def run(config: Any, *_: object, **__: object) -> None:
        if "2" not in codes:
            codes["2"] = -1
            for seed in ("3", "4"):
                codes[seed] = exit_code("train", *words, f"seed={seed}")

    monkeypatch.setattr("kd.runs.run.run", run)
    for name, value in (("JOB_ID", "7"), ("STEP_ID", "0"), ("NTASKS", "2"), ("PROCID", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    words = ("model=mlp_to_mlp", f"output_dir={tmp_path}")
    assert exit_code("train", *words, "seed=3") == 0
    assert (codes["3"], codes["4"]) == (2, 0)
    assert "srun started 2 tasks of the same config" in capsys.readouterr().err
    assert exit_code("train", *words, "seed=3") == 0, "once the first has ended"
    assert not list(tmp_path.glob("store/*"))
