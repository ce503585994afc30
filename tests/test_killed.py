"""A run killed at random moments, repeatedly, ends like one that was not.

`KD_KILLS=20 pytest tests/test_killed.py` kills more often; `KD_SEED` chooses other moments.
"""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from dropping import AS_STUDENT
from processes import Process
from safetensors.torch import load_file
from torch import equal

KILLS = int(os.environ.get("KD_KILLS", "3"))
ARGUMENTS = (
    *(
        "model=mlp_to_mlp",
        "data.limit=400",
        "batch_size=50",
        "teacher.batch_size=50",
        "teacher.net.hidden=[16]",
    ),
    *("epochs=8", "teacher.epochs=8", "pictures=false", *AS_STUDENT),
)


def ended(out: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return weights and metrics of the last finished run; a killed one may also be complete."""
    *_, folder = sorted(path for path in (out / "runs").iterdir() if not path.name.startswith("."))
    assert not folder.name.endswith(".partial")
    models = json.loads((folder / "report.json").read_text())["models"]
    told = [{name: each[name] for name in ("role", "stage", "test", "val")} for each in models]
    return load_file(folder / "student.safetensors"), told


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(workers: int, tmp_path: Path) -> None:
    def start(out: str) -> Process:
        return Process(
            "kd.train", *ARGUMENTS, f"data.num_workers={workers}", f"output_dir={tmp_path / out}"
        )

    Process("kd.train", "--help").wait()  # the libraries are imported now
    started = time.monotonic()
    assert start("whole").wait().returncode == 0
    seconds = time.monotonic() - started
    weights, models = ended(tmp_path / "whole")
    moments = random.Random(int(os.environ.get("KD_SEED", "0")) + workers)
    kills, round_ = 0, 0
    while kills < KILLS:  # a run that has come to its end makes room for another
        round_ += 1
        done: set[str] = set()
        while True:
            process = start(f"killed{round_}")
            process.process.join(moments.uniform(0.1, 0.8) * seconds if kills < KILLS else 300)
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
            assert not [name for name in done if f"{name}: training" in process.stderr], (
                process.stderr
            )
            done |= {
                name
                for name in ("teacher", "baseline", "distill")
                if f"{name}: trained" in process.stderr
            }
            if process.returncode != -signal.SIGKILL:
                break
        assert process.returncode == 0, process.stderr
        found, told = ended(tmp_path / f"killed{round_}")
        assert found.keys() == weights.keys()
        assert all(equal(found[name], weights[name]) for name in weights)
        assert told == models
