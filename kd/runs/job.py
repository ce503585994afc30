"""One sweep job, run by a launcher in any process; its run, log and outcome are files."""

import gc
import hashlib
import json
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from hydra.utils import get_object
from omegaconf import DictConfig
from pydantic import Field

from kd.command import Leave, typed_overrides
from kd.config.schema import Training
from kd.errors import DamagedError, RankLostError, StopRequest, UserError, WriteError
from kd.files.locks import free, hold
from kd.files.records import Record, read_record
from kd.files.report_file import Report, read_report
from kd.files.writing import whole
from kd.log import say
from kd.ranks import current
from kd.runs.job_log import into
from kd.runs.own_device import reserve_devices
from kd.stages.code_hash import RECIPE, code_of, targets

SCHEMA = 1

# Location and manner of a result; it stays valid when these change.
APART = {"output_dir", "force", "debug", "logger"}


class Outcome(Record):
    """How a job ended.

    Attributes:
        key: of the job that ended so; see `Job.key`.
        finished: ISO time.
        error: what went wrong; None where all is well.
    """

    key: str
    finished: str
    seconds: float
    error: str | None = None
    schema_number: int = Field(default=SCHEMA, alias="schema")


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        overrides: from which Hydra composes it.
        label: distinguishes it from the sweep's other jobs, for people.
        config: checked, with the name of the run folder.
        sweep: folder of the sweep.
        command: command line that runs it alone.
        since: older results do not count; None: all count.
        driver: process that started the sweep.
        run: dotted path of the function that runs the config.
    """

    overrides: tuple[str, ...]
    label: str
    config: Training
    sweep: Path
    command: str
    since: datetime | None = None
    driver: int = field(default_factory=os.getpid)
    run: str = "kd.runs.run.run"

    @property
    def folder(self) -> Path:
        """Folder of the finished run."""
        return self.sweep / self.config.name

    @property
    def log(self) -> Path:
        """Messages of the job, and the traceback if it failed; the outcome is beside it."""
        return self.sweep / "logs" / f"{self.config.name}.log"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the job."""
        return self.log.with_suffix(".lock")

    @cached_property
    def key(self) -> str:
        """Hash of everything that the result depends on except the images: config and named code.

        After a change of a YAML file or a loss, an old result no longer matches.
        """
        config = self.config.model_dump(mode="json", exclude=APART)
        spec = {"recipe": RECIPE, "config": config, "code": code_of(*targets(config))}
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]

    def outcome(self) -> Outcome | None:
        """Read the outcome; None if the job has not ended or left none.

        Raises:
            UserError: a later kd wrote it.
        """
        path = self.log.with_suffix(".json")
        try:
            found = read_record(path, Outcome, SCHEMA, "job")
        except (OSError, DamagedError):
            return None
        old = self.since is not None and datetime.fromisoformat(found.finished) < self.since
        return None if old or found.key != self.key else found

    def report(self) -> Report | None:
        """Read the finished run's report; None if the job is not done, or failed."""
        outcome = self.outcome()
        if outcome is None or outcome.error is not None:
            return None
        try:
            return read_report(self.folder / "report.json")
        except OSError:
            return None
        except DamagedError as error:
            say(f"{self.label}: {error}; the job is done again")
            return None

    def end(self, seconds: float, error: str | None = None) -> None:
        """Write the outcome."""
        outcome = Outcome(
            schema_number=SCHEMA,
            key=self.key,
            finished=datetime.now(UTC).isoformat(),
            seconds=round(seconds, 1),
            error=error,
        )
        with whole(self.log.with_suffix(".json")) as temporary:
            temporary.write_text(outcome.text())

    def forget(self) -> None:
        """Remove the outcome."""
        self.log.with_suffix(".json").unlink(missing_ok=True)

    def make_ready(self) -> None:
        """Remove the outcome, unless another process of this sweep runs or has finished the job."""
        with free(self.lock, remove=False) as mine:
            if mine and self.report() is None:
                self.forget()

    def runs_elsewhere(self) -> bool:
        """Whether another process runs it."""
        with free(self.lock, remove=False) as mine:
            return not mine

    def do(self) -> None:
        """Run it in this process. Errors end here, in its log and outcome.

        Raises:
            Leave: interrupted, or the disk is full; the sweep ends.
        """
        try:
            with hold(self.lock, self.label, "runs it"):
                if self.report() is None:  # it may have finished while this one waited
                    self.forget()
                    started = time.perf_counter()
                    error = _attempt(self)
                    self.end(time.perf_counter() - started, error)
        except WriteError as error:  # no space even for the outcome, so none for later jobs
            raise Leave from error
        # The next job may run in this process, and nets and images form reference cycles
        gc.collect()


class LauncherTask:
    """Called by a launcher for each job, in place of the command's function.

    Args:
        jobs: by their overrides.
    """

    def __init__(self, jobs: Mapping[tuple[str, ...], Job]) -> None:
        self.jobs = jobs

    def __call__(self, cfg: DictConfig) -> None:
        """Run the job that Hydra has composed; see `Job.do`."""
        self.jobs[tuple(typed_overrides())].do()


def _attempt(job: Job) -> str | None:
    """Run the job; returns the error message, if any."""
    with into(job.log) as console:
        try:
            from kd.files.run_folder import JobFolder

            config = job.config
            # Several progress bars on one terminal would overwrite each other
            if os.getpid() != job.driver:
                if devices := reserve_devices(config.trainer):
                    say(f"on GPU {', '.join(devices)}")
                config = config.model_copy(
                    update={"trainer": {"enable_progress_bar": False, **config.trainer}}
                )
            get_object(job.run)(
                config, job.command, folder=JobFolder(job.folder), since=job.since, out=console
            )
        except (Exception, SystemExit) as error:
            # Without torchrun's or srun's other processes no further job can begin
            if isinstance(error, StopRequest) or (isinstance(error, RankLostError) and current()):
                raise Leave from error
            console.print(traceback.format_exc(), markup=False, soft_wrap=True)
            return describe(error)
    return None


def describe(error: BaseException) -> str:
    """Describe an error; a UserError by its message alone."""
    text = str(error).strip()
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".rstrip(": ")
