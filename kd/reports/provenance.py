"""Provenance of a result: time, command, code, environment."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import torch

from kd.files.report_file import Environment


class Provenance(TypedDict):
    """How a result was made: when, by which commit of the code (None: unknown), and on what."""

    finished: str
    git: str | None
    command: str
    environment: Environment


def provenance(command: str) -> Provenance:
    """Return what every result says of its making.

    Args:
        command: the line that repeats it.
    """
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "command": command,
        "environment": _environment(),
    }


def _environment() -> Environment:
    """Return the machine and versions of the measurements."""
    return Environment(
        python=platform.python_version(),
        torch=str(torch.__version__),
        lightning=version("lightning"),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        threads=torch.get_num_threads(),
    )


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git() -> str | None:
    """Return the commit of the checkout, with `+` if it has changes; None without a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        sha = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return sha + ("+" if changes.strip() else "")
