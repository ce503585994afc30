"""Fixtures of the benchmarks: data, a teacher trained once, and the final table."""

import json
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch
from in_turn import HERE, THREADS, Row, seconds_of
from rich.console import Console
from rich.table import Table

ROOT = HERE.parents[1]
OUT = Path(os.environ.get("KD_OUTPUT_DIR", ROOT / "outputs")) / "benchmarks"
IMAGES = int(os.environ.get("KD_BENCH_IMAGES", "500"))  # to train on, of CIFAR-10
ROUNDS = int(os.environ.get("KD_BENCH_ROUNDS", "3"))

_rows: list[Row] = []


@pytest.fixture(autouse=True)
def _threads() -> None:
    """Use all cores, as a user's command does; the other tests use one."""
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def tell() -> Callable[[Row], None]:
    """Add a row to the table."""
    return _rows.append


@pytest.fixture(scope="session")
def cifar10() -> str:
    """The folder that holds CIFAR-10."""
    root = os.environ.get("KD_DATA_DIR", str(ROOT / "data"))
    if not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip(
            f"no CIFAR-10 in {root}; point KD_DATA_DIR at a folder that holds cifar-10-batches-py"
        )
    return root


@pytest.fixture(scope="session")
def train(cifar10: str) -> Callable[..., tuple[str, ...]]:
    """Return the command of a run or sweep on the same few images, with its own output folder."""

    def command(out: Path, *overrides: str, images: int = IMAGES) -> tuple[str, ...]:
        data = ("--config-dir", str(HERE / "conf"), "data=part_of_cifar10", f"data.root={cifar10}")
        same = (
            f"data.count={images}",
            "batch_size=100",
            "teacher.batch_size=100",
            "keep=last",
            "pictures=false",
            "+optim.fused=true",  # as the loops have it
            f"output_dir={out}",
        )
        # Hydra accepts them only before the overrides.
        flags = [each for each in overrides if each == "-m"]
        return "-m", "kd.train", *flags, *data, *same, *(each for each in overrides if each != "-m")

    return command


@pytest.fixture(scope="session")
def teacher(train: Callable[..., tuple[str, ...]]) -> str:
    """Train a ResNet-18 once on the same images and keep its weights between sessions."""
    folder = OUT / f"teacher-{IMAGES}"
    weights = folder.with_suffix(".safetensors")
    if not weights.exists():
        seconds_of(*train(folder, "stages=[teacher]", "teacher.epochs=5"))
        (found,) = (folder / "store").glob("*/weights.safetensors")
        weights.write_bytes(found.read_bytes())
    return str(weights)


def pytest_terminal_summary() -> None:
    """Print the table, and write it as JSON."""
    if not _rows:
        return
    table = Table("", "ours", "other", "", "ratio", "of single rounds", "target", "met", "n")
    for row in _rows:
        spread = f"{row.low:.3f} to {row.high:.3f}"
        target = "" if row.target is None else f"{row.target:.3f}"
        numbers = (
            f"{row.ours:.4g}",
            f"{row.other:.4g}",
            row.unit,
            f"{row.ratio:.3f}",
            spread,
            target,
            row.met,
        )
        table.add_row(row.what, *numbers, str(row.rounds))
    console = Console(width=140)
    console.print(table)
    for row in _rows:
        if row.note:
            console.print(f"{row.what}: {row.note}", highlight=False)
    sha = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": THREADS,
        "torch": torch.__version__,
    }
    about = {
        "finished": datetime.now().astimezone().isoformat(),
        "git": sha or None,
        "images": IMAGES,
        **machine,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / f"{datetime.now():%Y-%m-%d_%H-%M-%S}.json"
    file.write_text(json.dumps({**about, "rows": [row.plain() for row in _rows]}, indent=1))
    console.print(f"Written to {file}", highlight=False, soft_wrap=True)
