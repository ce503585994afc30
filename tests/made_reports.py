"""Made-up reports for tests."""

import json
from typing import Any

from kd.files.report_file import Report

MODEL = {
    "net": "MLP", "params": 610, "macs": 500, "bytes": 2440, "stage": "0", "epochs": 2,
    "seconds": 1.0,
    "latency_ms": {"batch": 1, "median": 0.5, "p95": 3.0},
    "test": {"accuracy": 0.5, "accuracy_ci95": [0.1, 0.9], "nll": 0.7, "ece": 0.05},
    "val": {"best": 0.5, "last": 0.5},
}  # fmt: skip

REPORT = {
    "schema": 1, "name": "run", "seed": 0, "finished": "1", "git": None, "command": "",
    "config": {},
    "environment": {"python": "3", "torch": "2", "lightning": "2", "device": "a chip",
    "threads": 1},
    "data": {"name": "digits", "classes": ["0", "1"], "train": 20, "val": 10, "test": 18},
    "comparison": {"gain": None},
}  # fmt: skip


def as_report(plain: dict[str, Any]) -> Report:
    """Return what reading `report.json` gives."""
    return Report.model_validate_json(json.dumps(plain))


def model(role: str, **own: Any) -> dict[str, Any]:
    """A model of a report; dictionaries in `own` change what they name in that of `MODEL`."""
    found: dict[str, Any] = {"role": role, **MODEL}
    for name, value in own.items():
        found[name] = {**found[name], **value} if isinstance(value, dict) else value
    return found


def made_report(*models: dict[str, Any], **own: Any) -> Report:
    """A report of these models."""
    return as_report({**REPORT, "models": list(models) or [model("student")], **own})
