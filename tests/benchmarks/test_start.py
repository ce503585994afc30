"""Costs of a command before and beside training, in seconds and memory."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import ROUNDS
from in_turn import Row, in_turn, seconds_of

LIMITS = {"help": 0.8, "a run that is there already": 5.0}  # seconds
MEMORY = 2.5e9  # bytes


def against(what: str, seconds: list[float], limit: float, unit: str = "s", note: str = "") -> Row:
    """Make a row against a fixed limit."""
    middle = float(np.median(seconds))
    low, high = (each / limit for each in (min(seconds), max(seconds)))
    return Row(what, middle, limit, unit, middle / limit, low, high, 1.0, len(seconds), note)


def test_help(tell: Callable[[Row], None]) -> None:
    found = in_turn({"help": lambda: seconds_of("-m", "kd.train", "--help")}, 3 * ROUNDS)
    tell(against("kd.train --help", found["help"], LIMITS["help"]))


def test_a_run_that_is_there_already(tell: Callable[[Row], None], tmp_path: Path) -> None:
    small = ("model=mlp_to_mlp", "epochs=1", "teacher.epochs=1", f"output_dir={tmp_path}")
    found = in_turn({"again": lambda: seconds_of("-m", "kd.train", *small)}, ROUNDS)
    tell(
        against(
            "kd.train, all there already", found["again"], LIMITS["a run that is there already"]
        )
    )
    imports = in_turn({"imports": lambda: seconds_of("-c", "import kd.runs.run")}, ROUNDS)
    tell(against("of that, imports", imports["imports"], float(np.median(found["again"]))))


def test_memory(
    train: Callable[..., tuple[str, ...]], tell: Callable[[Row], None], tmp_path: Path
) -> None:
    """Measure peak resident memory of a whole run on 10,000 images of CIFAR-10: all images are
    read.
    """
    cheap = (
        "model=resnet18_to_cnn",
        "teacher.net.width=16",
        "student.net.width=8",
        "epochs=1",
        "teacher.epochs=1",
    )
    command = train(
        tmp_path,
        *cheap,
        "data.views=1",
        images=int(os.environ.get("KD_BENCH_MEMORY_IMAGES", "2000")),
    )
    peak = _peak(command)
    tell(against("memory of a run on CIFAR-10", [peak / 1e9], MEMORY / 1e9, "GB"))


def _peak(command: tuple[str, ...]) -> float:
    """Return the peak resident bytes of a Python command."""
    script = (
        "import resource, subprocess, sys;"
        "done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    says: list[str] = []
    seconds_of("-c", script, *command, says=says)
    return float(says[0]) * (1 if sys.platform == "darwin" else 1024)


def test_size_of_the_cache(
    train: Callable[..., tuple[str, ...]], teacher: str, tmp_path: Path
) -> None:
    """Check that E views of N images in C classes take E x N x C x 2 bytes and a header each."""
    count, views = 300, 3
    only = (
        "stages=[teacher,distill]",
        f"teacher.path={teacher}",
        "student.net.width=4",
        f"epochs={2 * views}",
    )
    seconds_of(*train(tmp_path, *only, f"data.views={views}", images=count))
    files = list((tmp_path / "cache" / "teacher").glob("*/view-*/logits.npy"))
    assert len(files) == views
    assert sum(file.stat().st_size for file in files) - views * count * 10 * 2 < views * 256
