"""A sweep: many runs in one folder. It skips finished runs, survives failures, ends in a table.

Jobs run one after another in this process, or through one of Hydra's launchers in a process pool or
on a cluster. Jobs and this process communicate through files, so all launchers behave alike.
"""

import gc
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra.utils import get_object
from omegaconf import DictConfig, open_dict

from kd.command import Leave, explain, of_hydra, typed_keys
from kd.config.schema import Training
from kd.errors import UnusedError, UserError
from kd.files.report_file import Report
from kd.log import say
from kd.ranks import current
from kd.runs.job import Job, LauncherTask, describe
from kd.runs.names import overrides_of, plain, run_names, swept_keys
from kd.runs.ranking import show
from kd.training.remaining import duration


@dataclass
class Entry:
    """One combination of the swept values.

    Attributes:
        number: from 1.
        swept: overrides that differ from the others, as `key=value`.
        config: checked; None if invalid.
        error: why it is invalid.
        job: None if there is nothing to run.
    """

    number: int
    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    config: Training | None = None
    error: Exception | None = None
    job: Job | None = None

    @property
    def label(self) -> str:
        """Label for people."""
        return " ".join(self.swept) or "the only job"


SOON = 5.0  # seconds of checking configs without a word

RunJobs = Callable[[Sequence[Entry]], None]  # returns when these jobs have ended


class Sweep(Callback):
    """Runs all jobs instead of Hydra's sweeper, which would repeat jobs and stop at a failure.

    Args:
        command: what follows `python -m`.
        check: dotted path of the function that checks a composed config, given the top-level keys
            typed.
        run: dotted path of the function that runs a checked config.
    """

    def __init__(
        self,
        command: str = "kd.train",
        check: str = "kd.config.schema.check",
        run: str = "kd.runs.run.run",
    ) -> None:
        self.command = command
        self.run = run
        self.check: Callable[[DictConfig, set[str]], Training] = get_object(check)

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Run what is not done, print the table of all, and exit.

        Raises:
            SystemExit: 0, or 1 if some job failed; failures are named, and all others are done.
            Leave: from `UserError` if no job's config is valid, or the launcher cannot start any.
        """
        try:
            self.config = config
            self.context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
            sys.exit(self.sweep(Path(str(config.hydra.sweep.dir)).expanduser()))
        except Exception as error:  # Hydra would turn it into a warning
            raise Leave from UserError(explain(error)) if of_hydra(error) else error

    def sweep(self, folder: Path) -> int:
        """Run what is not done, print the table of all; returns the exit code."""
        entries = self._entries(folder)
        jobs = [entry for entry in entries if entry.job]
        todo = [entry for entry in jobs if entry.job and entry.job.report() is None]
        say(
            f"{len(entries)} jobs in {folder}, {len(jobs) - len(todo)} of them done; their "
            "logs are in its logs/"
        )
        for entry in entries:
            if entry not in todo:
                self._say(entry, len(entries), before=True)
        self._launch(todo, len(entries))
        return self._finish(folder, entries)

    def _entries(self, folder: Path) -> list[Entry]:
        """Compose and check all combinations before any is run."""
        words = overrides_of(self.config)
        keys = swept_keys(self.config, words)
        (combinations,) = BasicSweeper.split_arguments(words, None)
        entries = []
        different = list(dict.fromkeys(map(tuple, combinations)))
        started = time.perf_counter()
        for i, overrides in enumerate(different, start=1):
            if i == 2:
                self._announce(different, keys, time.perf_counter() - started)
            swept = tuple(each for each in overrides if each.partition("=")[0] in keys)
            entries.append(entry := Entry(i, overrides, swept))
            try:
                entry.config = self._check(overrides)
            except (UserError, HydraException) as error:
                entry.error = error
        if all(entry.error for entry in entries):
            assert entries[0].error
            raise entries[0].error  # an error common to all jobs, as in a single run
        right = [entry for entry in entries if entry.config]
        names = run_names(
            [(entry.config, entry.overrides, entry.swept) for entry in right if entry.config]
        )
        for entry, name in zip(right, names, strict=True):
            assert entry.config
            entry.config = entry.config.model_copy(update={"name": name})
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"hydra.sweep.dir: cannot write into {folder.absolute()}: {error.strerror}"
            ) from error
        now = datetime.now(UTC)
        for entry in entries:
            if entry.config:
                since = now if entry.config.force else None
                command = _command(self.command, entry.overrides)
                entry.job = Job(
                    entry.overrides, entry.label, entry.config, folder, command, since, run=self.run
                )
            elif not isinstance(entry.error, UnusedError):
                log = _log_of(entry, folder)
                log.write_text(f"{explain(entry.error)}\n")  # type: ignore[arg-type]
        return entries

    def _announce(
        self, combinations: Sequence[tuple[str, ...]], keys: Collection[str], each: float
    ) -> None:
        """Say what a large sweep is going to do, before all configs are checked.

        Args:
            each: seconds that checking one config takes.
        """
        seconds = each * len(combinations)
        if seconds < SOON:
            return
        values: dict[str, set[str]] = {key: set() for key in sorted(keys)}
        for overrides in combinations:
            for word in overrides:
                key, _, value = word.partition("=")
                if key in values:
                    values[key].add(value)
        found = ", ".join(f"{len(those)} of {key}" for key, those in values.items())
        launcher = self.config.hydra.runtime.choices["hydra/launcher"]
        how = "one after another" if launcher == "basic" else f"by {launcher}"
        say(
            f"{len(combinations)} jobs (values: {found}), to be run {how} where they are not done; "
            f"first all configs are checked, in about {duration(seconds)}"
        )

    def _check(self, overrides: tuple[str, ...]) -> Training:
        try:
            cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        except ValueError as error:
            raise UserError(explain(error, words=overrides)) from error
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return self.check(cfg, typed_keys(overrides))

    def _launch(self, todo: Sequence[Entry], count: int) -> None:
        """Run the jobs; returns when all have ended."""
        if not todo:
            return
        run, size = self._launcher(todo)
        try:
            for batch in batches(todo, size):
                for entry in batch:
                    assert entry.job
                    entry.job.make_ready()
                started = datetime.now(UTC)
                with self._progress_lines(batch, count):
                    try:
                        run(batch)
                    except Exception as error:
                        if not any(_has_begun(entry, started) for entry in batch):
                            raise UserError(
                                f"hydra/launcher: no job could be started: {describe(error)}"
                            ) from error
                        self._run_alone(run, batch)
        finally:
            gc.unfreeze()  # else objects freed at process exit would not be

    def _launcher(self, todo: Sequence[Entry]) -> tuple[RunJobs, int]:
        """Return the function that runs the jobs, and the number of parallel jobs."""
        task = LauncherTask({entry.overrides: entry.job for entry in todo if entry.job})
        launcher = Plugins.instance().instantiate_launcher(self.context, task, self.config)
        # No isinstance: Hydra loads its plugin modules a second time
        kind = type(launcher).__name__
        if kind == "BasicLauncher":
            return self._run_here, 1
        if ranks := current():
            raise UserError(
                f"hydra/launcher: found {kind} beside the {ranks.launch.size} processes of "
                "torchrun or srun, which train one job after another together; leave the launcher "
                "out"
            )
        if kind == "JoblibLauncher":
            _refuse_devices(todo)
        if kind == "RayLauncher":
            ask_ray_for_gpus(launcher.ray_cfg.remote, todo)  # type: ignore[attr-defined]
        return partial(self._run_by, launcher), self.config.hydra.sweeper.max_batch_size or len(
            todo
        )

    def _run_here(self, batch: Sequence[Entry]) -> None:
        """Run like Hydra's basic launcher, without composing each job again (0.3 s)."""
        with env_override(self.config.hydra.job.env_set):
            for entry in batch:
                assert entry.job
                entry.job.do()
        if not gc.get_freeze_count():
            # Existing modules and data are kept, and need not be scanned after each job
            gc.freeze()

    def _run_by(self, launcher: Launcher, batch: Sequence[Entry]) -> None:
        # A job must not recompute the folder's name: its overrides differ from the sweep's.
        folder = str(Path(str(self.config.hydra.sweep.dir)).expanduser())
        folder = folder.replace("\\", "\\\\").replace("'", "\\'")
        overrides = [[*entry.overrides, f"hydra.sweep.dir='{folder}'"] for entry in batch]
        launcher.launch(overrides, initial_job_idx=batch[0].number)

    def _run_alone(self, run: RunJobs, batch: Sequence[Entry]) -> None:
        """Run the remaining jobs one by one after a process died and broke its pool."""
        for entry in batch:
            assert entry.job
            if entry.job.outcome() is None:
                say(
                    f"{entry.label}: its process, or another of the pool, has died; once "
                    "more, by itself"
                )
                try:
                    run([entry])
                except Exception as error:
                    entry.job.end(0.0, f"its process died: {describe(error)}")

    @contextmanager
    def _progress_lines(self, batch: Sequence[Entry], count: int) -> Iterator[None]:
        """Print a line for each job that ends meanwhile, in any process."""
        over = threading.Event()
        waiting = list(batch)

        def look() -> None:
            for entry in [each for each in waiting if each.job and each.job.outcome()]:
                waiting.remove(entry)
                self._say(entry, count)

        def watch() -> None:
            while not over.wait(0.5):
                look()

        thread = threading.Thread(target=watch, daemon=True)
        if len(batch) > 1:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if len(batch) > 1:
                thread.join()
            look()

    def _say(self, entry: Entry, count: int, before: bool = False) -> None:
        """Print the progress line of an ended job."""
        what = f"[{entry.number}/{count}]"
        if entry.job is None:
            why = explain(entry.error)  # type: ignore[arg-type]
            left = isinstance(entry.error, UnusedError)
            say(
                f"{what} left out of the sweep: {entry.label}: {why}"
                if left
                else f"{what} {entry.label}: failed: {why}"
            )
            return
        outcome = entry.job.outcome()
        report = entry.job.report()
        if report is None:
            error = outcome.error if outcome else None
            say(f"{what} {entry.label}: failed: {(error or 'it left no report').splitlines()[0]}")
            return
        model = report.student
        done = "done before, " if before else ""
        seconds = "" if before or not outcome else f", {outcome.seconds:.0f} s"
        best = model.val.best
        said = f" {100 * best:.2f} % on validation" if best is not None else " done"
        say(f"{what} {entry.label}: {done}{model.role}{said}{seconds}")

    def _show(self, folder: Path, finished: Sequence[tuple[Entry, Report]]) -> None:
        """Print the table of the finished jobs."""
        show([(entry.swept, report) for entry, report in finished])

    def _finish(self, folder: Path, entries: Sequence[Entry]) -> int:
        """Print the table, the command for the curves, and the failures; returns the exit code."""
        reports = {entry.number: entry.job.report() if entry.job else None for entry in entries}
        self._show(
            folder, [(entry, report) for entry in entries if (report := reports[entry.number])]
        )
        print(f"All curves: {shlex.join(['python', '-m', 'kd.dashboard', str(folder)])}")
        failed = [
            e for e in entries if not reports[e.number] and not isinstance(e.error, UnusedError)
        ]
        if not failed:
            return 0
        say(f"{len(failed)} of {len(entries)} jobs failed; the same command tries them again:")
        for entry in failed:
            outcome = entry.job.outcome() if entry.job else None
            error = (
                explain(entry.error)
                if entry.error
                else (outcome and outcome.error) or "it left no report"
            )
            log = entry.job.log if entry.job else _log_of(entry, folder)
            say(f"  {entry.label}: {error}\n    log: {log}")
        return 1


def batches(todo: Sequence[Entry], size: int) -> Iterator[list[Entry]]:
    """Group jobs by `size`, first those that no other process runs; each is probed once."""
    left = deque(todo)
    later = list[Entry]()
    while left or later:
        batch = list[Entry]()
        while left and len(batch) < size:
            entry = left.popleft()
            elsewhere = entry.job is not None and entry.job.runs_elsewhere()
            (later if elsewhere else batch).append(entry)
        if not left:
            room = size - len(batch)
            batch, later = batch + later[:room], later[room:]
        yield batch


def _command(command: str, overrides: Sequence[str]) -> str:
    """Return the command line that runs a job alone."""
    flags = [word for word in sys.argv[1:] if "=" not in word and word not in ("-m", "--multirun")]
    own = [override for override in overrides if not override.startswith("sweep=")]
    return shlex.join(["python", "-m", command, *flags, *own])


def _refuse_devices(entries: Sequence[Entry]) -> None:
    """Refuse several devices in joblib's pool, whose processes cannot start others."""
    from kd.training.devices import devices_of  # which brings torch

    found = [devices_of(entry.config.trainer) for entry in entries if entry.config]
    if many := [devices for devices in found if devices > 1]:
        raise UserError(
            f"trainer.devices: found {many[0]} with hydra/launcher=joblib; several devices "
            "take one job at a time: leave the launcher out, or take submitit_local or "
            "submitit_slurm"
        )


def ask_ray_for_gpus(remote: DictConfig, entries: Sequence[Entry]) -> None:
    """Have Ray reserve each job's GPUs: it hides all of them from a task that asks for none."""
    from kd.config.precision import device_of
    from kd.training.devices import devices_of

    asked = [
        devices_of(entry.config.trainer)
        for entry in entries
        if entry.config and device_of(str(entry.config.trainer["accelerator"])) == "cuda"
    ]
    if asked and "num_gpus" not in remote:
        with open_dict(remote):
            remote.num_gpus = max(asked)


def _log_of(entry: Entry, folder: Path) -> Path:
    """Write the log of a job without valid config, and return its path."""
    return folder / "logs" / f"{plain('_'.join(entry.swept), 100)}.log"


def _has_begun(entry: Entry, since: datetime) -> bool:
    log = entry.job.log if entry.job else None
    return log is not None and log.exists() and log.stat().st_mtime >= since.timestamp() - 1
