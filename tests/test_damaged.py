"""Files that were truncated, emptied or had a bit flipped are noticed and named, then rebuilt or
refused.

`KD_FLIPS=1000 pytest tests/test_damaged.py` flips more bits of each file; `KD_SEED` chooses others.
"""

import contextlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import TINY, composed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shipped import Shipped
from stopping import stop_before
from test_tune import searched

from kd import load
from kd.config.schema import Config, check
from kd.errors import StopRequest, UserError
from kd.files.checkpoints import read_checkpoint
from kd.files.state_dicts import read_weights
from kd.files.store import Store
from kd.files.tensors import load_tensors
from kd.runs.reader import open_run
from kd.runs.run import run
from kd.summary.reports import find_runs

Make = Callable[..., Config]
FLIPS = int(os.environ.get("KD_FLIPS", "25"))


def harms(path: Path) -> list[tuple[str, bytes]]:
    """Kinds of damage, by name."""
    content, draw = path.read_bytes(), random.Random(int(os.environ.get("KD_SEED", "0")))
    found = [
        ("emptied", b""),
        ("cut", content[: len(content) // 2]),
        ("cut at the end", content[:-1]),
    ]
    for place in (len(content) // 2, *(draw.randrange(len(content)) for _ in range(FLIPS))):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        found.append((f"flipped at {place} of {len(content)}", bytes(flipped)))
    return found


def tried(read: Callable[[], Any]) -> tuple[Any, str]:
    """Return what was read, or the message."""
    try:
        return read(), ""
    except UserError as error:
        return None, str(error)


def record(folder: Path, key: str) -> Any:
    done = Store(folder).find(key)
    return done and done.record.plain()


# Readers of each file, given its path; a run's whole output folder is around it.
READ: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a stage's weights": (
        "store/*/weights.safetensors",
        lambda path: open_run(run_of(path)).net("teacher"),
    ),
    "a stage's record": (
        "store/*/stage.json",
        lambda path: record(path.parents[1], path.parent.name),
    ),
    "a student": ("runs/*/student.safetensors", load),
    "a student as a teacher": (
        "runs/*/student.safetensors",
        lambda path: read_weights(path, "teacher.path"),
    ),
    "a report, by what reads a run": (
        "runs/*/report.json",
        lambda path: open_run(path.parent).report.plain(),
    ),
    "a report, by what reads many": (
        "runs/*/report.json",
        lambda path: find_runs([path.parent])[0].report.plain(),
    ),
}


# JSON that a person may edit: a changed number or word counts if the record stays valid.
EDITABLE = {"a stage's record", *(kind for kind in READ if kind.startswith("a report"))}


def assert_same_kind(found: Any, before: Any) -> None:
    """Check what programs rely on: a stage's spec, a run's models."""
    if "spec" in before:
        assert found["spec"] == before["spec"]
    else:
        assert len(found["models"]) == len(before["models"])


def run_of(path: Path) -> Path:
    return next(report.parent for report in (path.parents[2] / "runs").glob("*/report.json"))


def plain(found: Any) -> Any:
    """Convert to comparable values."""
    if isinstance(found, torch.nn.Module):
        found = found.state_dict() | {"": getattr(found, "classes", None)}
    if isinstance(found, dict):
        return {
            key: each.tolist() if isinstance(each, torch.Tensor) else each
            for key, each in found.items()
        }
    return found


@pytest.mark.parametrize("kind", READ)
def test_it_is_noticed_and_named_or_changes_nothing(
    kind: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.parents[1], tmp_path / "out")
    pattern, read = READ[kind]
    teacher = open_run(finished).stage("teacher").key
    (path,) = [
        each
        for each in (tmp_path / "out").glob(pattern)
        if each.parts[-3] == "runs" or teacher in each.parts
    ]
    before, noticed = plain(read(path)), 0
    for harm, content in harms(path):
        path.write_bytes(content)
        found, error = tried(lambda: plain(read(path)))
        if error:
            noticed += 1
            assert str(path) in error, harm
            assert len(error.splitlines()) <= 6, harm
        else:
            assert "flipped" in harm, harm
            if kind in EDITABLE:
                assert_same_kind(found, before)
            else:
                assert found == before, harm
    assert noticed >= (3 if kind in EDITABLE else FLIPS / 2)


@pytest.mark.parametrize("name", ["student.onnx", "student.int8.onnx"])
def test_an_exported_file(name: str, shipped: Shipped, tmp_path: Path) -> None:
    path = tmp_path / name
    shutil.copy(shipped.files / name, path)
    for harm, content in harms(path):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged|none of our") as told:
            pytest.fail(f"{harm} went unnoticed: {load(path)}")
        assert str(path) in str(told.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"dog"', b'"\xefog"'),
        (b"sha256", b"sha257"),
        (b"kd_schema", b"kd_schemb"),
        (b'"cat"', b'"cats'),
    ],
    ids=["no UTF-8", "no checksum", "no schema", "no JSON"],
)
def test_what_an_exported_file_says_of_itself(
    before: bytes, after: bytes, shipped: Shipped, tmp_path: Path
) -> None:
    path = tmp_path / "student.onnx"
    content = (shipped.files / path.name).read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))
    with pytest.raises(UserError, match=r"damaged|none of our") as told:
        load(path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_checkpoint_to_go_on_from(
    name: str,
    make_config: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("stages=[teacher,distill]", "epochs=3")
    config = make_config(*words)
    with monkeypatch.context() as patch:
        stop_before(2, patch)
        with pytest.raises(StopRequest):
            run(config, "")
    (path,) = (Path(config.output_dir) / "store").glob(f"*.partial/{name}")
    whole = path.read_bytes()
    before = read_checkpoint(path)
    for harm, content in harms(path):
        path.write_bytes(content)
        found, error = tried(lambda: read_checkpoint(path))
        if error:
            assert error.startswith(f"{path} is damaged: "), harm
        else:
            assert "flipped" in harm, harm
            tensors = [
                (found["state_dict"][each], tensor) for each, tensor in before["state_dict"].items()
            ]
            assert all(torch.equal(a, b) for a, b in tensors), harm
    middle = bytearray(whole)
    middle[whole.index(before["state_dict"]["net.fc.weight"].numpy().tobytes()[:64]) + 5] ^= 1
    path.write_bytes(middle)
    capsys.readouterr()
    folder = run(config, "")
    said = capsys.readouterr().err
    assert f"{path} is damaged: the checksum of " in said
    assert "; training starts from scratch" in said
    assert "from the last finished epoch" not in said
    undisturbed = make_config(*words, f"output_dir={config.output_dir}2")
    one, two = (load_file(each / "student.safetensors") for each in (folder, run(undisturbed, "")))
    assert all(torch.equal(one[each], two[each]) for each in one)


def test_what_a_net_said_is_asked_again(
    make_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(make_config(), "")
    report = json.loads((first / "report.json").read_text())
    store = first.parents[1] / "store"
    harmed = [*store.glob("*/logits-*"), *store.glob("*/views-*")]
    assert len(harmed) == 3 + 1 + 1
    for path in harmed:
        path.write_bytes(harms(path)[3][1])
    shutil.rmtree(first)  # else it would show the stages' curves
    capsys.readouterr()
    again = run(make_config(), "")
    said = capsys.readouterr().err
    asked = [path for path in harmed if path.suffix == ".safetensors" and "views-" not in path.name]
    test = [path for path in asked if f"{path} cannot be used" in said]
    assert len(test) == 3, "those of the validation part are for training alone"
    assert (
        json.loads((again / "report.json").read_text())["models"][2]["test"]
        == report["models"][2]["test"]
    )
    assert all(load_tensors(path) for path in test), "they were kept anew"


def test_a_search_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert searched(tmp_path, "n_trials=2") == 0
    path = tmp_path / "tune" / "s" / "study.db"
    whole = path.read_bytes()
    for told, change in (
        ("Expecting value", "update study_user_attributes set value_json = 'x' || value_json"),
        ("malformed", ""),
    ):
        path.write_bytes(whole[: None if change else -4096])
        if change:
            with contextlib.closing(sqlite3.connect(path)) as database, database:
                assert database.execute(change).rowcount > 0
        capsys.readouterr()
        assert searched(tmp_path, "n_trials=2") == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("kd: storage: ")
        assert str(path) in said
        assert told in said
    path.write_bytes(whole)
    assert searched(tmp_path, "n_trials=2") == 0


def test_a_later_kd_wrote_it(finished: Path, tmp_path: Path) -> None:
    """Readers report this, instead of damage."""
    shutil.copytree(finished.parents[1], tmp_path / "out")
    teacher = open_run(finished).stage("teacher").key
    store, run_folder = tmp_path / "out" / "store", tmp_path / "out" / "runs" / finished.name
    for path in (store / teacher / "stage.json", run_folder / "report.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    said = r"was written by a later kd \(schema 99; this one reads 1\)"
    with pytest.raises(UserError, match=rf"stage\.json {said}"):
        Store(store).find(teacher)
    for read in (
        lambda: open_run(run_folder),
        lambda: find_runs([run_folder]),
        lambda: load(run_folder),
    ):
        with pytest.raises(UserError, match=rf"report\.json {said}"):
            read()
    path = run_folder / "student.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["kd"])
    save_file(load_file(path), path, {"kd": json.dumps(about | {"schema": 99})})
    with pytest.raises(UserError, match=rf"student\.safetensors {said}"):
        load(path)
    rest = [each for each in TINY if "teacher.net" not in each]
    with pytest.raises(UserError, match=rf"student\.safetensors {said}"):
        check(
            composed(*rest, "teacher=checkpoint", f"teacher.path={path}", f"output_dir={tmp_path}")
        )
