"""Several processes that do the same at once, and locks of dead ones.

`KD_TOGETHER=32 pytest tests/test_together.py` uses more of them.
"""

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
from composed import TINY
from processes import Process

from kd.config.schema import Config
from kd.errors import WriteError
from kd.files.locks import free, hold, lock_at
from kd.runs.job import Job

MANY = int(os.environ.get("KD_TOGETHER", "4"))
ARGUMENTS = ("model=mlp_to_mlp", *TINY)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [(), ("-m", "temperature=3,4")], ids=["run", "sweep"])
def test_each_stage_is_trained_once_and_all_end_alike(
    sweep: tuple[str, ...], tmp_path: Path
) -> None:
    all_of_them = [
        Process("kd.train", *sweep, *ARGUMENTS, f"output_dir={tmp_path}") for _ in range(MANY)
    ]
    assert [each.wait().returncode for each in all_of_them] == [0] * MANY, all_of_them[0].stderr
    said = "".join(each.stderr for each in all_of_them) + "".join(
        log.read_text() for log in tmp_path.glob("sweeps/*/logs/*.log")
    )
    assert "Traceback" not in said
    assert "is taken over" not in said
    students = 2 if sweep else 1
    for stage, count in (("teacher", 1), ("baseline", 1), ("distill", students)):
        assert said.count(f"{stage}: training for") == count
        assert said.count(f"{stage}: trained in") == count
    reports = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*s/**/report.json"))]
    assert len(reports) == (2 if sweep else MANY)
    told = {
        json.dumps([(each["stage"], each["test"], each["val"]) for each in one["models"]])
        for one in reports
    }
    assert len(told) == students
    assert not list(tmp_path.rglob("*.partial"))
    assert not [path for path in tmp_path.rglob("*.lock") if path.stat().st_size], (
        "nobody has let go"
    )


@pytest.mark.slow
def test_a_job_that_another_process_is_at_comes_last(tmp_path: Path) -> None:
    """The same sweep, started on two machines, takes half the time."""
    told: list[str] = []
    with hold(
        tmp_path / "sweeps" / "shared" / "logs" / "shared_seed-0_s0.lock", "seed=0", "runs it"
    ):
        sweep = Process(
            "kd.train", "-m", *ARGUMENTS, f"output_dir={tmp_path}", "name=shared", "seed=0,1,2"
        )
        for line in sweep.lines():
            told += [line[:5]] if line.startswith("[") else []
            if "runs it; waiting" in line:
                break
    assert told == ["[2/3]", "[3/3]"]
    assert sweep.wait().returncode == 0, sweep.stderr
    assert len(list(tmp_path.glob("sweeps/shared/*/report.json"))) == 3


def test_what_another_process_says_of_a_job_stays(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job((), "seed=0", make_config(), tmp_path, "")
    job.log.parent.mkdir()

    def kept_after(error: str | None, report: dict[str, str] | None) -> bool:
        monkeypatch.setattr(Job, "report", lambda _: report)
        job.end(1.0, error)
        job.make_ready()
        return job.outcome() is not None

    assert not kept_after("out of memory", None), "it is tried again"
    assert kept_after(None, {"done": "meanwhile"})
    with hold(job.lock, "seed=0", "runs it"):
        assert kept_after("just now", None)


def test_a_lock_of_a_dead_process_is_taken_over_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a lock of another machine: the file server has released it, and its name is still
    there.
    """
    path = tmp_path / "k.lock"
    path.write_text("process 4711 on node17")
    with hold(path, "teacher", "is training it"):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
    said = capsys.readouterr().err
    assert (
        said
        == f"teacher: the lock of process 4711 on node17, which has ended, is taken over ({path})\n"
    )
    with hold(path, "teacher", "is training it"):
        pass
    assert capsys.readouterr().err == "", "it was let go of"
    path.write_bytes(b"\x1b[31m\xff 12\nsomething else\n")  # of another program, perhaps
    with hold(path, "teacher", "is training it"):
        assert (
            "the lock of another process, which has ended, is taken over" in capsys.readouterr().err
        )


@pytest.mark.slow
def test_a_killed_run_is_waited_for_by_name_and_taken_over(tmp_path: Path) -> None:
    endless = Process(
        "kd.train", *ARGUMENTS, "stages=[baseline]", "epochs=3000", f"output_dir={tmp_path}"
    )
    assert any("epoch 2/" in line for line in endless.lines()), endless.stderr
    waiting = Process(
        "kd.train", *ARGUMENTS, "stages=[baseline]", "epochs=3000", f"output_dir={tmp_path}"
    )
    name = f"process {endless.process.pid} on "
    for line in waiting.lines():
        if "waiting" in line:
            assert line.startswith(f"baseline: {name}")
            assert line.endswith(" is training it; waiting")
            endless.send_signal(signal.SIGKILL)
        if "baseline: epoch" in line:
            waiting.send_signal(signal.SIGTERM)
            break
    waiting.wait()
    assert f"baseline: the lock of {name}" in waiting.stderr
    assert "from the last finished epoch of an earlier attempt" in waiting.stderr
    (lock,) = (tmp_path / "store").glob("*.lock")
    assert lock.read_text() == "", "who is asked to leave lets go"


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """filelock would instead take an existing file as a lock, which a dead process never
    releases.
    """

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(filelock._unix.fcntl, "flock", missing)
    refused = pytest.raises(
        WriteError, match=r"x\.lock: its file system has no locks .*set output_dir"
    )
    with refused, hold(tmp_path / "x.lock", "teacher", "is training it"):
        pass
    with refused, lock_at(tmp_path / "x.lock"):  # as a search's
        pass


def test_a_lock_may_be_had_or_not(tmp_path: Path) -> None:
    with free(tmp_path / "lock") as first, free(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    assert not (tmp_path / "lock").exists()
