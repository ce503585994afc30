"""Full or read-only disks: one message that names the file, earlier files stay, and a rerun works.

With the right to mount a file system of a few kB, all moments of a run are tried; `KD_SIZES=60`
tries more.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import TINY
from safetensors.torch import load_file
from test_tune import searched

from kd.errors import WriteError
from kd.files.checkpoints import WholeCheckpoints, read_checkpoint
from kd.files.writing import whole, writing
from kd.log import say
from kd.runs.job_log import into
from kd.summary import write_summary
from kd.train import start

ARGUMENTS = ("model=mlp_to_mlp", *TINY)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
SIZES = int(os.environ.get("KD_SIZES", "4"))


def train(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the command in this process; returns its exit code and stderr."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kd.train", *ARGUMENTS, *arguments])
        with pytest.raises(SystemExit) as end:
            start()
    return int(end.value.code or 0), capsys.readouterr().err


def ended(out: Path) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Return weights and metrics of the run in an output folder."""
    (folder,) = (path for path in (out / "runs").iterdir() if not path.name.startswith("."))
    models = json.loads((folder / "report.json").read_text())["models"]
    return load_file(folder / "student.safetensors"), [
        [each[key] for key in ("stage", "test")] for each in models
    ]


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of that many kB; skips the test if not possible."""
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or os.geteuid()
        or subprocess.run(line, capture_output=True, check=False).returncode
    ):
        pytest.skip("no right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def change(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_moment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(capsys, f"output_dir={tmp_path / 'whole'}")[0] == 0
    wanted, told = ended(tmp_path / "whole")
    needed, seen = 260, set()
    for i in range(SIZES):
        disk = tmp_path / f"disk{i}"
        with small_disk(disk, size := needed * (i + 1) // (SIZES + 1)):
            code, said = train(capsys, f"output_dir={disk / 'out'}")
            assert code == 2, (size, said)
            assert "Traceback" not in said, said
            *_, last = said.splitlines()
            assert last.startswith("kd: cannot write "), size
            assert f" {disk}/" in last, size
            assert last.endswith(os.strerror(errno.ENOSPC)), size
            seen.add(last.removeprefix("kd: cannot write ").partition(":")[0])
            assert not list((disk / "out" / "runs").glob("[!.]*")), (
                "a run is there whole or not at all"
            )
            done = [path.name for path in (disk / "out" / "store").glob("*/stage.json")]
            change(disk, "size=8m")
            code, again = train(capsys, f"output_dir={disk / 'out'}")
            assert code == 0, (size, again)
            assert again.count("already there") >= len(done), "what was finished was kept"
            found, same = ended(disk / "out")
            assert same == told, size
            assert all(torch.equal(found[name], wanted[name]) for name in wanted), size
    assert {"the checkpoint", "the run's folder"} <= seen


@pytest.mark.slow
def test_a_disk_that_may_only_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", 8000):
        out = tmp_path / "disk" / "out"
        assert train(capsys, f"output_dir={out}", "stages=[teacher]")[0] == 0
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        change(tmp_path / "disk", "ro")
        code, said = train(capsys, f"output_dir={out}", "stages=[teacher]")
        assert (code, said) == (
            2,
            f"kd: output_dir: cannot write into {out}: {os.strerror(errno.EROFS)}\n",
        )
        with pytest.raises(
            WriteError, match=rf"the summary: {out}/summary\.csv: {os.strerror(errno.EROFS)}"
        ):
            write_summary([out])
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_limit_on_the_size_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Limit the file size, as a quota does: the first epoch's checkpoint is too large."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        code, said = train(capsys, f"output_dir={tmp_path}", "stages=[baseline]")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert re.search(rf"kd: cannot write [^:]+: {tmp_path}/\S+: {os.strerror(errno.EFBIG)}$", said)
    assert "Traceback" not in said
    assert train(capsys, f"output_dir={tmp_path}", "stages=[baseline]")[0] == 0


def test_an_earlier_checkpoint_stays_where_there_is_no_room_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"epoch": 1}, path)

    def half(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:100])
        raise FULL

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(WriteError, match=rf"cannot write the checkpoint: {path}: {FULL.strerror}"):
        WholeCheckpoints().save_checkpoint({"epoch": 2}, path)
    assert read_checkpoint(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_curves_that_cannot_be_written_end_the_run_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard's own thread writes them; its traceback would be a second one."""

    def full(*_: object) -> None:
        raise FULL

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    monkeypatch.setattr("threading.excepthook", threading.excepthook)  # it is put back
    code, said = train(capsys, f"output_dir={tmp_path}", "stages=[baseline]")
    assert code == 2
    assert said.splitlines()[-1].startswith(f"kd: cannot write the run's folder: {tmp_path}/runs/")
    assert said.endswith(f".partial: {FULL.strerror}\n")
    monkeypatch.setattr("threading.excepthook", threading.__excepthook__)
    assert searched(tmp_path, "n_trials=1") == 2  # which has curves of stages alone
    (training, said) = capsys.readouterr().err.splitlines()[-2:]
    assert training == "teacher: training for 2 epochs"
    assert said.startswith(f"kd: cannot write the curves of teacher: {tmp_path}/store/")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_every_cause_is_named(number: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def half() -> None:
        with whole(path) as temporary:
            temporary.write_text("hal")
            raise OSError(number, os.strerror(number))

    with pytest.raises(WriteError, match=rf"^cannot write {path}: {os.strerror(number)}$"):
        half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        _ = 1 / 0
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "none").read_text()
    with pytest.raises(PermissionError), writing(tmp_path / "file"):  # which this is not about
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere/image.png")


def test_a_library_that_has_its_own_words_for_it(tmp_path: Path) -> None:
    (tmp_path / "events" / "baseline").mkdir(parents=True)
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "baseline").touch()  # a file where a folder should be
    with pytest.raises(WriteError, match=os.strerror(errno.EEXIST)), writing(tmp_path / "copied"):
        shutil.copytree(tmp_path / "events", tmp_path / "copied", dirs_exist_ok=True)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_log_without_room_stops_no_job() -> None:
    with into(Path("/dev/full")):
        say("x" * 100_000)
