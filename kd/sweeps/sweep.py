"""A sweep: many runs in one folder. What is done is skipped, a failing run stops no other, and a table ends it.

The jobs are run one after another in this process, or by one of Hydra's launchers in a pool of processes or on a
cluster. What the jobs and this process tell each other is in files, so it is alike with each of them.
"""

import gc
import hashlib
import re
import shlex
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra.utils import get_object
from omegaconf import Container, DictConfig, OmegaConf, open_dict

from kd.command import Leave, explain, of_hydra, typed_keys
from kd.config import Training
from kd.errors import UnusedError, UserError
from kd.log import say
from kd.sweeps.job import Job, Task, describe
from kd.sweeps.ranking import show, student_of

# What a run's name shows anyway.
SHOWN = {"data", "model", "teacher", "student", "loss", "experiment", "alpha", "temperature", "seed"}

# Groups whose files pick those of other groups.
PICKED = {"model": {"teacher", "student"}, "incremental/method": {"loss"}}

# What a sweep's name does not depend on: forced, or shown with tracebacks, it is the same sweep.
APART = {"force", "debug", "pictures", "output_dir", "name", "sweep"}


@dataclass
class Entry:
    """One combination of the swept values.

    Attributes:
        number: from 1.
        swept: what of it differs from the others, as `key=value`.
        config: checked; None where it cannot be.
        error: why not.
        job: None where there is nothing to run.
    """

    number: int
    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    config: Training | None = None
    error: Exception | None = None
    job: Job | None = None

    @property
    def label(self) -> str:
        """For people."""
        return " ".join(self.swept) or "the only job"


class Sweep(Callback):
    """Runs all jobs in the place of Hydra's sweeper, which knows nothing of what is done, and stops at a failure.

    Args:
        command: what comes after `python -m`.
        check: the dotted path of what checks a composed config, given the top-level keys that were typed.
        run: that of what runs a checked config.
    """

    def __init__(self, command: str = "kd.train", check: str = "kd.config.check", run: str = "kd.run.run") -> None:
        self.command, self.run = command, run
        self.check: Callable[[DictConfig, set[str]], Training] = get_object(check)

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Run what is not done, show the table of all, and leave the process.

        Raises:
            SystemExit: 0, or 1 where some job has failed; the failures are named, and all else is done.
            Leave: from `UserError` where no job's config is right, or the launcher cannot start any.
        """
        try:
            self.config = config
            self.context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
            sys.exit(self.sweep(Path(str(config.hydra.sweep.dir)).expanduser()))
        except Exception as error:  # of which Hydra would make a warning
            raise Leave from UserError(explain(error)) if of_hydra(error) else error

    def sweep(self, folder: Path) -> int:
        """The same; returns the exit code."""
        entries = self._entries(folder)
        jobs = [entry for entry in entries if entry.job]
        todo = [entry for entry in jobs if entry.job and entry.job.report() is None]
        say(f"{len(entries)} jobs in {folder}, {len(jobs) - len(todo)} of them done; what they say is in its logs/")
        for entry in entries:
            if entry not in todo:
                self._say(entry, len(entries), before=True)
        try:
            self._launch(todo, len(entries))
        finally:
            gc.unfreeze()  # or what frees itself when the process ends would not
        return self._finish(folder, entries)

    def _entries(self, folder: Path) -> list[Entry]:
        """All combinations, composed and checked before any is run."""
        parsed = _parsed(self.config)
        keys, (combinations,) = _swept_keys(self.config, parsed), BasicSweeper.split_arguments(parsed, None)
        entries = []
        for i, overrides in enumerate(dict.fromkeys(map(tuple, combinations)), start=1):
            swept = tuple(each for each in overrides if each.partition("=")[0] in keys)
            entries.append(entry := Entry(i, overrides, swept))
            try:
                entry.config = self._checked(overrides)
            except (UserError, HydraException) as error:
                entry.error = error
        if all(entry.error for entry in entries):
            assert entries[0].error
            raise entries[0].error  # a mistake that all jobs share, as for a single run
        _name(entries)
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"hydra.sweep.dir: cannot write into {folder.absolute()}: {error.strerror}") from error
        now = datetime.now(UTC)
        for entry in entries:
            if entry.config:
                since = now if entry.config.force else None
                command = _command(self.command, entry.overrides)
                entry.job = Job(entry.overrides, entry.label, entry.config, folder, command, since, run=self.run)
            elif not isinstance(entry.error, UnusedError):
                _log_of(entry, folder).write_text(f"{explain(entry.error)}\n")  # type: ignore[arg-type]
        return entries

    def _checked(self, overrides: tuple[str, ...]) -> Training:
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
        task = Task({entry.overrides: entry.job for entry in todo if entry.job})
        launcher: Launcher | None = Plugins.instance().instantiate_launcher(self.context, task, self.config)
        kind = type(launcher).__name__  # no isinstance: Hydra loads its plugins' modules once more
        if kind == "JoblibLauncher":
            _refuse_devices(todo)
        if kind == "BasicLauncher":
            launcher = None
        size = self.config.hydra.sweeper.max_batch_size or len(todo) if launcher else 1
        left = list(todo)
        while left:
            left.sort(key=lambda entry: bool(entry.job and entry.job.runs_elsewhere()))  # what is free comes first
            batch, left = left[:size], left[size:]
            for entry in batch:
                assert entry.job
                entry.job.make_ready()
            started = datetime.now(UTC)
            with self._told(batch, count):
                try:
                    self._run(launcher, batch)
                except Exception as error:
                    if not any(_begun(entry, started) for entry in batch):
                        raise UserError(f"hydra/launcher: no job could be started: {describe(error)}") from error
                    self._run_alone(launcher, batch)

    def _run(self, launcher: Launcher | None, batch: Sequence[Entry]) -> None:
        """Have the jobs run; None runs them in this process, without composing each of them once more (0.3 s)."""
        if launcher is None:
            with env_override(self.config.hydra.job.env_set):
                for entry in batch:
                    assert entry.job
                    entry.job.do()
            if not gc.get_freeze_count():
                gc.freeze()  # modules and data that are there now stay, and need not be looked through after each job
            return
        # A job must not derive the folder's name anew: its overrides are others than the sweep's.
        folder = str(self.config.hydra.sweep.dir).replace("\\", "\\\\").replace("'", "\\'")
        overrides = [[*entry.overrides, f"hydra.sweep.dir='{folder}'"] for entry in batch]
        launcher.launch(overrides, initial_job_idx=batch[0].number)

    def _run_alone(self, launcher: Launcher | None, batch: Sequence[Entry]) -> None:
        """A process has died, and a pool's others with it: go on with each of the rest by itself."""
        for entry in batch:
            assert entry.job
            if entry.job.outcome() is None:
                say(f"{entry.label}: its process, or another of the pool, has died; once more, by itself")
                try:
                    self._run(launcher, [entry])
                except Exception as error:
                    entry.job.end(0.0, f"its process died: {describe(error)}")

    @contextmanager
    def _told(self, batch: Sequence[Entry], count: int) -> Iterator[None]:
        """A line for each job that ends meanwhile, in whatever process."""
        over, waiting = threading.Event(), list(batch)

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
        """The line of progress of a job that has ended."""
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
        outcome, report = entry.job.outcome(), entry.job.report()
        if report is None:
            error = outcome.error if outcome else None
            say(f"{what} {entry.label}: failed: {(error or 'it left no report').splitlines()[0]}")
            return
        model = student_of(report)
        done = "done before, " if before else ""
        seconds = "" if before or not outcome else f", {outcome.seconds:.0f} s"
        say(f"{what} {entry.label}: {done}{model['role']} {100 * model['val']['best']:.2f} % on validation{seconds}")

    def _finish(self, folder: Path, entries: Sequence[Entry]) -> int:
        """Show the table of what is done, the line to look closer, and what has failed; returns the exit code."""
        reports = {entry.number: entry.job.report() if entry.job else None for entry in entries}
        show([(entry.swept, report) for entry in entries if (report := reports[entry.number])])
        print(f"All curves: {shlex.join(['python', '-m', 'kd.dashboard', str(folder)])}")
        failed = [e for e in entries if not reports[e.number] and not isinstance(e.error, UnusedError)]
        if not failed:
            return 0
        say(f"{len(failed)} of {len(entries)} jobs failed; the same command tries them again:")
        for entry in failed:
            outcome = entry.job.outcome() if entry.job else None
            error = explain(entry.error) if entry.error else (outcome and outcome.error) or "it left no report"
            log = entry.job.log if entry.job else _log_of(entry, folder)
            say(f"  {entry.label}: {error}\n    log: {log}")
        return 1


def sweep_name(*, _root_: Container) -> str:
    """The name of a sweep's folder: that of its runs as far as they share it, what is swept, and a hash of the rest.

    The same for the same overrides, so that the same command finds what is done. A `name=` typed there is taken as it
    is.
    """
    parsed = _parsed(_root_)
    given = {each.get_key_element(): each for each in parsed}
    if "name" in given and not given["name"].is_sweep_override():
        return str(given["name"].value())
    keys = _swept_keys(_root_, parsed)
    hidden = keys.union(*(picked for key, picked in PICKED.items() if key in keys))
    choices = OmegaConf.select(_root_, "hydra.runtime.choices")
    shared = {name: choices.get(name) for name in ("data", "teacher", "student", "loss", "experiment")}
    parts = [value for name, value in shared.items() if value not in (None, "null") and name not in hidden]
    if shared["teacher"] and not {"teacher", "student"} & hidden:
        parts[1 - ("data" in hidden)] += "_to"
    parts += [key.rpartition(".")[2] for key in given if key in keys]
    rest = sorted(str(each.input_line) for key, each in given.items() if key not in APART)
    return _plain("_".join(parts), 100) + "_" + hashlib.sha256("\n".join(rest).encode()).hexdigest()[:6]


def _parsed(config: Container) -> list[Override]:
    """All overrides: those of a file in conf/sweep, then those of the command line, which win."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    words = [f"{key}={value}" for key, value in params.items()]
    typed: Any = OmegaConf.to_container(OmegaConf.select(config, "hydra.overrides.task"), resolve=False)
    return OverridesParser.create().parse_overrides([*words, *map(str, typed)])


def _swept_keys(config: Container, parsed: Sequence[Override]) -> set[str]:
    """The keys that the command line or a file in conf/sweep sweeps, those set to one value there among them."""
    swept = {each.get_key_element() for each in parsed if each.is_sweep_override()}
    return swept | set(OmegaConf.select(config, "hydra.sweeper.params") or ())


def _name(entries: Sequence[Entry]) -> None:
    """Give each run a name of its own: with what is swept in it, where the usual name does not tell the runs apart."""
    configs = [entry.config for entry in entries if entry.config]
    times = Counter(config.name for config in configs)
    taken: set[str] = set()
    for entry in entries:
        if entry.config is None or times[entry.config.name] == 1:
            continue
        own = any(override.startswith("name=") for override in entry.overrides)  # then it shows nothing
        words = [word.partition("=") for word in entry.swept]
        more = [f"{key.rpartition('.')[2]}-{_plain(value, 40)}" for key, _, value in words if own or key not in SHOWN]
        name = _with(entry.config, _plain("_".join(more), 60))
        if name in taken:
            name = _with(entry.config, hashlib.sha256(" ".join(entry.swept).encode()).hexdigest()[:8])
        taken.add(name)
        entry.config = entry.config.model_copy(update={"name": name})


def _with(config: Training, more: str) -> str:
    """A run's name with more in it; the seed stays at its end."""
    seed = f"_s{config.seed}"
    return f"{config.name.removesuffix(seed)}_{more}{seed}"


def _plain(text: str, longest: int) -> str:
    """Text as part of a file's name; cut, with a hash, where it is too long."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
    if len(plain) <= longest:
        return plain
    return f"{plain[: longest - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _command(command: str, overrides: Sequence[str]) -> str:
    """The line that runs a job alone."""
    flags = [word for word in sys.argv[1:] if "=" not in word and word not in ("-m", "--multirun")]
    own = [override for override in overrides if not override.startswith("sweep=")]
    return shlex.join(["python", "-m", command, *flags, *own])


def _refuse_devices(entries: Sequence[Entry]) -> None:
    """A process of joblib's pool cannot start those that several devices need."""
    found = [entry.config.trainer.get("devices", 1) for entry in entries if entry.config]
    if many := [devices for devices in found if devices not in (1, "1", "auto")]:
        raise UserError(
            f"trainer.devices: found {many[0]} with hydra/launcher=joblib; several devices take one job at a time: "
            "leave the launcher out, or take submitit_local or submitit_slurm"
        )


def _log_of(entry: Entry, folder: Path) -> Path:
    """Where it stands what is wrong with a job that has no config."""
    return folder / "logs" / f"{_plain('_'.join(entry.swept), 100)}.log"


def _begun(entry: Entry, since: datetime) -> bool:
    log = entry.job.log if entry.job else None
    return log is not None and log.exists() and log.stat().st_mtime >= since.timestamp() - 1


OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
