"""The frame of every run: store, folder, stages one by one, and the result on a console."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kd.config.schema import Training
from kd.data.base import DataModule
from kd.files.run_folder import RunFolder
from kd.files.store import StageResult, Store
from kd.files.writing import writable, writing
from kd.stages.complete import complete
from kd.stages.stage import Stage


class RunFrame:
    """What a chain of stages and a run over tasks have in common.

    Args:
        config: the run's, resolved.
        folder: to be filled; None for a new one in `runs` in the output folder.
        since: with `force`, stages finished after that time are not trained again.
        out: console for the result; None for stdout.

    Raises:
        UserError: nothing can be written in the output folder.
    """

    def __init__(
        self,
        config: Training,
        folder: RunFolder | None,
        since: datetime | None,
        out: Console | None,
    ) -> None:
        self.output = writable(Path(config.output_dir).expanduser())
        self.store = Store(self.output / "store")
        self._name = config.name
        self._force = config.force
        self._folder = folder
        self._since = since
        self._out = out

    @contextmanager
    def open_folder(self) -> Iterator[RunFolder]:
        """Open the run's folder, which appears when the block ends without an error."""
        folder = self._folder or RunFolder(self.output / "runs", self._name)
        with writing(folder.path, "the run's folder"), folder:
            yield folder

    def finish(self, stage: Stage, data: DataModule, folder: RunFolder) -> tuple[StageResult, str]:
        """Train or fetch a stage, with live curves in the folder; also returns how it was got."""
        folder.follow(stage.name, self.store.root / f"{stage.key}.partial" / "tensorboard")
        started = time.perf_counter()
        result, reused = complete(stage, self.store, data, force=self._force, since=self._since)
        folder.settle(stage.name, result.folder / "tensorboard", self.output)
        folder.keep_csv(stage.name, result.folder)
        if reused:
            return result, "already there"
        if not stage.spec.epochs:
            return result, "used as is"
        return result, f"trained in {time.perf_counter() - started:.0f} s"

    def show(self, folder: RunFolder, table: Table, lines: Sequence[str]) -> Path:
        """Print the result, and where the report is; returns the finished folder."""
        console = self._out or Console()
        console.print(table)
        for line in lines:
            console.print(line, highlight=False)
        report = folder.final / "report.html"
        console.print(f"Report: {report}", highlight=False, soft_wrap=True)
        return folder.final
