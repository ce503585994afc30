"""Contents of an output folder, and removal of parts."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd.data.cache import Cache
from kd.errors import UserError
from kd.files.inventory import UNKNOWN, inventory, select
from kd.files.locks import hold
from kd.files.store import checksum
from kd.store import checks, main
from kd.teachers.answer_record import AnswerRecord
from kd.teachers.view_files import Room, ViewFiles


def _stage(output: Path, key: str, size: int, **spec: object) -> Path:
    folder = output / "store" / key
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"x" * size)
    record = {
        "spec": {"net": {"_target_": "kd.nets.mlp.MLP"}, **spec},
        "epochs": 2,
        "sha256": checksum(folder / "weights.safetensors"),
    }
    (folder / "stage.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A run with teacher and student, an orphan, an attempt, and outputs."""
    _stage(tmp_path, "a" * 16, 1000)
    _stage(tmp_path, "b" * 16, 2000, teacher="a" * 16)
    _stage(tmp_path, "c" * 16, 3000)
    (tmp_path / "store" / f"{'d' * 16}.partial").mkdir()
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "report.json").write_text(json.dumps({"models": [{"stage": "b" * 16}]}))
    view = tmp_path / "cache" / "teacher" / "e-cpu" / "view-0"
    view.mkdir(parents=True)
    (view / "manifest.json").write_text("{}")
    (view / "logits.npy").write_bytes(b"x" * 9000)
    return tmp_path


def names(output: Path, **rules: object) -> set[str]:
    return {entry.path.name[0] for entry in select(inventory(output), **rules)}  # type: ignore[arg-type]


def test_runs_need_what_their_stages_were_built_on(output: Path) -> None:
    needed = {entry.path.name[0]: entry.needed_by for entry in inventory(output)}
    assert needed == {"a": ("one",), "b": ("one",), "c": (), "d": (), "e": (UNKNOWN,)}
    assert names(output, unused=True) == {"c", "d"}


@pytest.mark.parametrize(("teacher", "runs"), [("a", ("one",)), ("c", ())])
def test_answers_are_needed_where_their_teacher_is(
    teacher: str, runs: tuple[str, ...], output: Path
) -> None:
    manifest = {"teacher": teacher * 16, "rows": 7}
    path = output / "cache" / "teacher" / "e-cpu" / "view-0" / "manifest.json"
    path.write_text(json.dumps(manifest))
    (entry,) = (each for each in inventory(output) if each.kind == "teacher answers")
    assert entry.needed_by == runs
    assert entry.about == f"1 view of 7 images by {teacher * 16}"
    assert ("e" in names(output, unused=True)) == (not runs)


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        ({"data": {"root": "PHOTOS"}}, True),
        ({"data": {"root": "/else"}, "teacher": {"data": {"root": "PHOTOS"}}}, True),
        ({"data": {"root": "PHOTOS/train/a-*.tar"}}, True),
        ({"data": {"root": "/else", "unlabeled": None}, "teacher": {"data": None}}, False),
    ],
)
def test_decoded_images_are_needed_by_runs_on_their_folder(
    config: dict[str, dict[str, object]], needed: bool, output: Path
) -> None:
    text = json.dumps({"models": [], "config": config}).replace("PHOTOS", str(output / "photos"))
    (output / "runs" / "one" / "report.json").write_text(text)
    entry = output / "cache" / "images-5"
    entry.mkdir()
    place = f"{output / 'photos' / 'train'}, {output / 'photos' / 'test'}"
    (entry / "manifest.json").write_text(json.dumps({"place": place, "shape": [1, 3, 8, 6]}))
    (found,) = (each for each in inventory(output) if each.kind == "decoded images")
    assert found.needed_by == (("one",) if needed else ())
    assert found.about == f"1 image of 3x8x6 from {place}"


def test_what_was_used_last_stays(output: Path) -> None:
    old = time.time() - 40 * 86_400
    for path in (output / "store" / ("a" * 16)).iterdir():
        os.utime(path, (old, old))
    assert names(output, days=30) == {"a"}
    sizes = {entry.path.name[0]: entry.bytes for entry in inventory(output)}
    rest = sum(sizes.values()) - sizes["a"]
    assert names(output, gigabytes=rest / 1e9) == {"a"}


def test_damage_is_named(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "store" / ("b" * 16) / "weights.safetensors").write_bytes(b"y" * 2000)
    (output / "store" / ("c" * 16) / "stage.json").write_text("{")
    found = {entry.path.name[0]: entry.damage for entry in inventory(output, {})}
    assert found["b"] == "the checksum of weights.safetensors is wrong"
    assert found["c"] == "stage.json is missing or damaged"
    assert found["a"] == ""


def test_what_a_cache_never_finished_is_named(output: Path) -> None:
    cache = output / "cache"
    (cache / "teacher" / "e-cpu" / "view-1.partial").mkdir()
    for name in ("images-1", "images-2.partial", "images-3"):
        (cache / name).mkdir()
    (cache / "images-1" / "manifest.json").write_text('{"bad": {}}')
    (cache / "images-3" / "manifest.json").write_text("{")
    found = {entry.path.name: entry.damage for entry in inventory(output)}
    assert found["e-cpu"] == "view-1.partial is unfinished or incomplete"
    assert found["images-1"] == ""
    assert found["images-2.partial"] == found["images-3"] == "unfinished or incomplete"


def test_changed_bytes_of_a_cache_are_found(tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    Image.new("RGB", (4, 4)).save(photo)
    Cache(tmp_path / "cache", "disk").decode_files([photo], 4, 3)
    files = ViewFiles(Room(tmp_path / "cache" / "teacher", 1.0), "key", 1, AnswerRecord(2))
    with files.claim(0):
        files.write(0, [np.zeros((1, 2), np.float16)])
    assert [each.damage for each in inventory(tmp_path, checks())] == ["", ""]
    for file in (*tmp_path.rglob("pixels.npy"), *tmp_path.rglob("logits.npy")):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert {each.damage for each in inventory(tmp_path, checks())} == {
        "images in pixels.npy have changed",
        "view-0: the checksum of logits.npy is wrong",
    }


@pytest.mark.parametrize("name", ["images-2.partial", "teacher/e-cpu"])
def test_what_a_cache_is_being_filled_with_stays(name: str, output: Path) -> None:
    from kd.files.inventory import remove

    folder = output / "cache" / name
    folder.mkdir(exist_ok=True)
    lock = folder / "lock-1" if "teacher" in name else folder.parent / "images-2.lock"
    (entry,) = (each for each in inventory(output) if each.path == folder)
    with hold(lock, "data.cache", "is decoding"):
        assert not remove(entry)
        assert folder.exists()
    assert remove(entry)


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["kd.store", *words, "--output", str(output)])
    main()


def nobody() -> str:
    raise EOFError


@pytest.mark.parametrize("words", [("--gigabytes", "-1"), ("--days", "nan"), ("--days", "few")])
def test_what_is_no_amount(
    words: tuple[str, str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, output, "prune", "--yes", *words)
    assert (output / "store" / ("c" * 16)).exists()


def test_it_asks_first(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "n")
    run(monkeypatch, output, "prune", "--unused")
    assert (output / "store" / ("c" * 16)).exists()
    monkeypatch.setattr("builtins.input", lambda _: nobody())
    with pytest.raises(UserError, match="nobody answers; --yes removes"):
        run(monkeypatch, output, "prune", "--unused")
    run(monkeypatch, output, "prune", "--unused", "--yes")
    assert not (output / "store" / ("c" * 16)).exists()
    assert (output / "store" / ("a" * 16)).exists()
    run(monkeypatch, output)
    assert "teacher answers: 1, 9 kB" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_in_use_stays(output: Path) -> None:
    from kd.files.inventory import remove

    (entry,) = (each for each in inventory(output) if each.path.name.startswith("c"))
    pid = os.fork()
    if pid == 0:
        with hold(output / "store" / f"{'c' * 16}.lock", "c", "is training it"):
            time.sleep(20)
        os._exit(0)
    for _ in range(100):
        if (output / "store" / f"{'c' * 16}.lock").exists():
            break
        time.sleep(0.05)
    time.sleep(0.2)
    try:
        assert not remove(entry)
        assert entry.path.exists()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert remove(entry)
