"""Commands run in this process, as typed."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

NAMES = (
    "train",
    "tune",
    "compare",
    "report",
    "evaluate",
    "benchmark",
    "export",
    "predict",
    "incremental",
    "dashboard",
    "store",
)


def exit_code(name: str, *arguments: str) -> int:
    """Run `python -m kd.NAME ARGUMENTS`."""
    GlobalHydra.instance().clear()
    module = importlib.import_module(f"kd.{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"kd.{name}", *arguments])
        if not any(word.startswith("sweep=") for word in arguments):
            # Hydra composes all twice, to see first whether a file says MULTIRUN. Presets do.
            patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        with pytest.raises(SystemExit) as end:
            module.start()
    return int(end.value.code or 0)


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Check that nothing in a folder is written, removed or added."""
    before = _state(folder)
    yield
    after = _state(folder)
    changed = sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )
    assert not changed


def _state(folder: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        written = (stat.st_size, stat.st_mtime_ns) if not path.is_dir() else ()
        found[str(path.relative_to(folder))] = (stat.st_ino, stat.st_mode, *written)
    return found
