"""Reading of many runs' reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kd.errors import UserError
from kd.files.known_runs import which_runs
from kd.files.report_file import ModelReport, Report, read_report


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: of the run.
        report: contents of its `report.json`.
    """

    folder: Path
    report: Report

    def model(self, role: str) -> ModelReport | None:
        """Return the report's entry of a role; None if the run has no such model."""
        return self.report.model(role)

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.report.seed


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Find all finished runs in and under these folders, each once.

    Raises:
        UserError: a missing path, no report at all, a damaged one, or one of a later kd.
    """
    files: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path.absolute()}: there is no such folder{which_runs(path)}")
        found = [path] if path.is_file() else sorted(path.rglob("report.json"))
        files |= {
            file.resolve(): None for file in found if not file.parent.name.endswith(".partial")
        }
    if not files:
        raise UserError(
            f"{', '.join(str(path.absolute()) for path in paths)}: no report.json in there"
        )
    return [Run(file.parent, read_report(file)) for file in files]
