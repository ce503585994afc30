"""Many jobs in one process: constant memory and open files, no job lost or slower than the first.

`KD_JOBS=200 pytest tests/test_long_sweep.py -s` runs that many and prints its measurements.
"""

import json
import os
import re
import statistics
from pathlib import Path

import pytest
from composed import TINY
from processes import Process

JOBS = int(os.environ.get("KD_JOBS", "8"))
WARM = min(20, JOBS // 2)  # jobs after which all is loaded and allocated that later ones use too
MEGABYTE = 2**20


def resident(pid: int) -> float:
    """Megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * JOBS)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is looked up in /proc")
def test_memory_and_open_files_stay_flat(tmp_path: Path) -> None:
    words = [
        "model=mlp_to_mlp",
        *TINY,
        "epochs=1",
        "teacher.epochs=1",
        "trainer=cpu",
        f"output_dir={tmp_path}",
    ]
    sweep = Process("kd.train", "-m", *words, "name=long", f"seed=range({JOBS})")
    memory, files = {}, {}
    for line in sweep.lines():
        if (
            found := re.match(r"\[(\d+)/\d+\] .* on validation", line)
        ) and sweep.returncode is None:
            pid = sweep.process.pid
            assert pid
            memory[int(found[1])], files[int(found[1])] = resident(pid), open_files(pid)
    assert sweep.wait().returncode == 0, sweep.stderr
    folder = tmp_path / "sweeps" / "long"
    assert len(list(folder.glob("*/report.json"))) == JOBS
    outcomes = [json.loads(path.read_text()) for path in folder.glob("logs/*.json")]
    outcomes.sort(key=lambda each: each["finished"])
    assert [each["error"] for each in outcomes] == [None] * JOBS
    seconds = [each["seconds"] for each in outcomes[1:]]  # the first trains the teacher
    last = max(memory)
    early, late = statistics.median(seconds[:WARM]), statistics.median(seconds[-WARM:])
    print(
        f"{JOBS} jobs: {memory[WARM]:.0f} MB after job {WARM}, {memory[last]:.0f} MB after "
        f"job {last}; open files {files[WARM]} and {files[last]}; seconds a job {early:.2f} "
        f"and {late:.2f} (medians of {WARM})"
    )
    # With few jobs the noise exceeds the growth
    assert memory[last] - memory[WARM] < 10 + 0.05 * (last - WARM)
    assert files[last] <= files[WARM] + 3
    # With few jobs other tests may run beside them
    assert late < (1.5 * early + 0.5 if JOBS >= 100 else 2 * early + 1)
