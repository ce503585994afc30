"""The GPU benchmark completes, here on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.sh"


def gpu(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the script where there is no GPU."""
    own = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([SCRIPT, *words], env=os.environ | own, capture_output=True, text=True)


@pytest.mark.slow
def test_it_writes_its_table(tmp_path: Path) -> None:
    small = ["--seconds", "0.05", "--batch", "8", "--epochs", "1", "--processes", "2"]
    done = gpu("--device", "cpu", *small, "--out", str(tmp_path / "gpu.md"))
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "gpu.md").read_text().splitlines()
    rows = [line for line in found if line.startswith("| ")]
    # Three heads; three nets in two formats; one count of processes; three roles in two settings.
    assert len(rows) == 3 + 3 * 2 + 1 + 2 * 3
    assert [line for line in found if line.startswith("## ")] == [
        "## Bare steps, batches of 8",
        "## Processes side by side",
        "## Stages of kd",
    ]


@pytest.mark.slow
def test_without_a_gpu_it_says_so() -> None:
    done = gpu()
    assert done.returncode == 1
    assert done.stderr == "gpu.py: there is no GPU here; --device cpu tries the script out\n"
