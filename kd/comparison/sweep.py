"""The jobs of a comparison, run like those of a sweep; and its table."""

import json
from collections.abc import Sequence
from pathlib import Path

from kd.comparison.request import CompareConfig
from kd.config.fields import Node
from kd.errors import UnusedError, UserError
from kd.files.report_file import Report
from kd.runs.sweep import Entry, Sweep


class ComparisonSweep(Sweep):
    """Sweep over methods, pairs of nets and seeds that ends in a table of all."""

    def __init__(self) -> None:
        super().__init__("kd.compare", "kd.comparison.request.check", "kd.comparison.cell.run_cell")

    def _check(self, overrides: tuple[str, ...]) -> CompareConfig:
        config = super()._check(overrides)
        assert isinstance(config, CompareConfig)
        config._overrides = overrides
        config.request()  # refuses a wrong search before any job
        return config

    def _entries(self, folder: Path) -> list[Entry]:
        """Compose and check all jobs; data without validation is refused once, for all of them."""
        entries = super()._entries(folder)
        found: dict[str, Node] = {}
        for config in _configs(entries):
            none = 0 in (config.data.get("val_fraction"), config.data.get("val_labels"))
            if config.n_trials and none:
                found[json.dumps(config.data, sort_keys=True)] = config.data
        for node in found.values():
            _refuse(node)
        return entries

    def sweep(self, folder: Path) -> int:
        """Run what is not done and print the table; in a dry run, say how long that would take."""
        if not self.config.dry_run:
            return super().sweep(folder)
        from kd.comparison.forecast import forecast  # importing torch takes seconds

        entries = self._entries(folder)
        jobs = [each for each in entries if each.job]
        refused = [each for each in entries if not each.job]
        done = [entry for entry in jobs if entry.job and entry.job.report()]
        for entry in refused:
            self._say(entry, len(entries))
        print(forecast(_configs(jobs), _configs(done)))
        return 1 if any(not isinstance(each.error, UnusedError) for each in refused) else 0

    def _show(self, folder: Path, finished: Sequence[tuple[Entry, Report]]) -> None:
        from kd.comparison.table import write_table  # importing scipy takes a second

        if finished:
            entries, reports = zip(*finished, strict=True)
            folders = [folder / config.name for config in _configs(entries)]
            print(write_table(_configs(entries), reports, folders, folder))


def _refuse(node: Node) -> None:
    """Read data and refuse it if no search can choose on it; `n_trials=0` needs no search."""
    from kd.config.construct import construct
    from kd.tuning.search import refuse_without_validation  # importing torch takes seconds

    try:
        refuse_without_validation(construct(node, "data"))
    except UserError as error:
        raise UserError(f"{error}; n_trials=0 compares without a search") from None


def _configs(entries: Sequence[Entry]) -> list[CompareConfig]:
    return [entry.config for entry in entries if isinstance(entry.config, CompareConfig)]
