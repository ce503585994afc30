"""Each process of a pool gets GPUs of its own."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import kd.runs.own_device
from kd.runs.own_device import reserve_devices


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make this process look like a new one, on a machine with four GPUs; returns its locks."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    def start(visible: str | None = None) -> list[Any]:
        monkeypatch.setattr(kd.runs.own_device, "_held", held := [])
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return held

    return start


def test_processes_spread_over_the_gpus(tmp_path: Path, another_process: Any) -> None:
    """Six of them on four GPUs; then the third ends, and a seventh starts."""
    held, taken = [], []
    for _ in range(6):
        held.append(another_process())
        taken.append(reserve_devices({"devices": 1}, tmp_path))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == taken[-1][0]
        assert reserve_devices({"devices": 1}, tmp_path) == []  # its next job stays there
    assert taken == [["0"], ["1"], ["2"], ["3"], ["0"], ["1"]]
    for lock in held[2]:
        lock.release()
    held.append(another_process())
    assert reserve_devices({"devices": 1}, tmp_path) == ["2"]
    held.append(another_process())
    assert sorted(reserve_devices({"devices": 3}, tmp_path)) == ["0", "2", "3"]  # the least used


def test_only_visible_gpus_are_taken(
    tmp_path: Path, another_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    held = [another_process("GPU-b, 3")]
    assert reserve_devices({"devices": 1}, tmp_path) == ["GPU-b"]
    held.append(another_process("GPU-b, 3"))
    assert reserve_devices({"devices": 1}, tmp_path) == ["3"]


@pytest.mark.parametrize(
    "options",
    [
        {"devices": 4},
        {"devices": "auto"},
        {"devices": -1},
        {"devices": [2]},
        {"devices": 1, "accelerator": "cpu"},
    ],
)
def test_nothing_to_choose(options: dict[str, Any], tmp_path: Path, another_process: Any) -> None:
    another_process()
    assert reserve_devices(options, tmp_path) == []
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
