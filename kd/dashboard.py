"""`python -m kd.dashboard [PATH]`: TensorBoard over runs and sweeps under a folder, live ones too.

PATH is `outputs` (or KD_OUTPUT_DIR) by default, or the folder of a sweep or run. Arguments after it
go to TensorBoard, such as `--port 6007`. Runs are shown by name, without their start time; a second
one of the same name is `NAME~2`. The store itself is not shown.

python -m kd.dashboard                                  all runs and sweeps in outputs
python -m kd.dashboard outputs/sweeps/SWEEP --port 6007
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from kd.command import folder_at, run_command
from kd.errors import UserError
from kd.files.known_runs import which_runs
from kd.log import say

EVERY = 2.0  # seconds between two scans for new runs


def runs_in(folder: Path) -> dict[str, Path]:
    """Map display names to the runs' event folders, the oldest of equal names first."""
    found: dict[str, Path] = {}
    places = [folder.glob(f"{'*/' * depth}tensorboard") for depth in range(4)]
    for events in sorted(
        (each for place in places for each in place), key=lambda each: each.parent.name
    ):
        parts = events.absolute().parts
        if "store" in parts[-3:] or (events.parent / "stage.json").exists():
            continue
        name = re.sub(r"^\d{8}-\d{6}_|\.partial$", "", events.parent.name)
        count = 2
        unique = name
        while unique in found:
            unique, count = f"{name}~{count}", count + 1
        found[unique] = events.resolve()
    return found


def refresh(shown: Path, runs: dict[str, Path]) -> None:
    """Update `shown` to hold one link per run, and no dead links."""
    for link in shown.iterdir():
        if runs.get(link.name) != Path(os.readlink(link)):
            link.unlink()
    for name, events in runs.items():
        if not (shown / name).is_symlink():
            (shown / name).symlink_to(events, target_is_directory=True)


def main() -> None:
    """Show runs and sweeps in TensorBoard."""
    parser = argparse.ArgumentParser(
        "python -m kd.dashboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output = os.environ.get("KD_OUTPUT_DIR", "outputs")
    parser.add_argument(
        "path",
        nargs="?",
        type=folder_at,
        default=output,
        metavar="PATH",
        help="default: %(default)s",
    )
    words = sys.argv[1:]
    first = 1 if words and (not words[0].startswith("-") or words[0] in ("-h", "--help")) else 0
    # `--port 6007` alone names no PATH
    known = parser.parse_args(words[:first])
    rest = words[first:]
    if not known.path.is_dir():
        raise UserError(f"{known.path.absolute()}: there is no such folder{which_runs(known.path)}")
    if not runs_in(known.path):
        say(f"No run in {known.path.absolute()} yet; one that begins will be shown.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the clean-up below runs
    with tempfile.TemporaryDirectory(prefix="kd-dashboard-") as shown:
        refresh(Path(shown), runs_in(known.path))
        line = [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            shown,
            "--reload_interval",
            "5",
            *rest,
        ]
        board = subprocess.Popen(line)
        try:
            while board.poll() is None:
                try:
                    board.wait(EVERY)
                except subprocess.TimeoutExpired:
                    refresh(Path(shown), runs_in(known.path))
        finally:
            board.terminate()
            board.wait()
    sys.exit(board.returncode)


def start() -> NoReturn:
    """Run the command."""
    run_command(main, "kd.dashboard")


if __name__ == "__main__":
    start()
