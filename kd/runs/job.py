"""One job of a sweep, as a launcher runs it in whatever process: its run, its log, and how it ended, all in files."""

import gc
import hashlib
import json
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from kd.command import Leave, typed
from kd.config.schema import Training
from kd.errors import CannotWrite, Damaged, Interrupted, UserError
from kd.files.locks import free, held
from kd.files.records import read_record
from kd.files.report_file import read_report
from kd.files.writing import whole
from kd.log import say
from kd.runs.job_log import into
from kd.stages.code_hash import RECIPE, code_of, targets

SCHEMA = 1

# Where a result is put, and how it is come by: it stays good when these change.
APART = {"output_dir", "force", "debug"}


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        key: of the job that ended so; see `Job.key`.
        schema: of this record.
        finished: ISO time.
        error: what went wrong; None where all is well.
    """

    key: str
    finished: str
    seconds: float
    error: str | None = None
    schema: int = SCHEMA


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        overrides: what Hydra composes it from.
        label: tells it from the sweep's other jobs, for people.
        config: checked, with the name that the run's folder gets.
        sweep: the sweep's folder.
        command: the line that runs it alone.
        since: results from before that time do not count; None where all do.
        driver: the process that started the sweep.
        run: the dotted path of what runs the config.
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
        """The finished run's."""
        return self.sweep / self.config.name

    @property
    def log(self) -> Path:
        """What the job said, and the traceback if it failed. How it ended stands beside it."""
        return self.sweep / "logs" / f"{self.config.name}.log"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the job."""
        return self.log.with_suffix(".lock")

    @cached_property
    def key(self) -> str:
        """A hash of all that the result depends on but the images: of the whole config, and of the code it names.

        After an edit of a YAML file or of a loss, an old result is another job's.
        """
        config = self.config.model_dump(mode="json", exclude=APART)
        spec = {"recipe": RECIPE, "config": config, "code": code_of(*targets(config))}
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]

    def outcome(self) -> Outcome | None:
        """How it ended; None where it has not ended yet, or nothing tells any more.

        Raises:
            UserError: a later kd wrote it.
        """
        path = self.log.with_suffix(".json")
        try:
            found = Outcome(**read_record(path, SCHEMA, "job"))
        except (OSError, Damaged, TypeError):
            return None
        old = self.since is not None and datetime.fromisoformat(found.finished) < self.since
        return None if old or found.key != self.key else found

    def report(self) -> dict[str, Any] | None:
        """The finished run's report; None where the job is not done, or failed."""
        outcome = self.outcome()
        if outcome is None or outcome.error is not None:
            return None
        try:
            return read_report(self.folder / "report.json")
        except OSError:
            return None
        except Damaged as error:
            say(f"{self.label}: {error}; the job is done again")
            return None

    def end(self, seconds: float, error: str | None = None) -> None:
        """Write down how it ended."""
        outcome = Outcome(self.key, datetime.now(UTC).isoformat(), round(seconds, 1), error)
        with whole(self.log.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(asdict(outcome)))

    def forget(self) -> None:
        """Remove what stands there of how it ended."""
        self.log.with_suffix(".json").unlink(missing_ok=True)

    def make_ready(self) -> None:
        """The same, unless another process is at the job, of the same sweep started twice, or has done it meanwhile."""
        with free(self.lock, remove=False) as mine:
            if mine and self.report() is None:
                self.forget()

    def runs_elsewhere(self) -> bool:
        """Whether another process is at it."""
        with free(self.lock, remove=False) as mine:
            return not mine

    def do(self) -> None:
        """Run it in this process. Its errors end here: in its log, and in how it ended.

        Raises:
            Leave: it was interrupted, or nothing can be written any more, and the sweep ends with it.
        """
        try:
            with held(self.lock, self.label, "runs it"):
                if self.report() is None:  # it may have finished while this one waited
                    self.forget()
                    started = time.perf_counter()
                    error = _attempt(self)
                    self.end(time.perf_counter() - started, error)
        except (
            CannotWrite
        ) as error:  # there is no room even to say how it went, so none for the jobs after it
            raise Leave from error
        gc.collect()  # the next job may run in this process, and nets and images hang together in circles


class LauncherTask:
    """What a launcher calls for each job, in the place of the command's function.

    Args:
        jobs: by their overrides.
    """

    def __init__(self, jobs: Mapping[tuple[str, ...], Job]) -> None:
        self.jobs = jobs

    def __call__(self, cfg: DictConfig) -> None:
        """Do the job that Hydra has composed; see `Job.do`."""
        self.jobs[tuple(typed())].do()


def _attempt(job: Job) -> str | None:
    """Run the job; returns what went wrong."""
    with into(job.log) as console:
        try:
            from kd.files.run_folder import JobFolder

            config = job.config
            if (
                os.getpid() != job.driver
            ):  # several progress bars on one terminal would overwrite each other
                config = config.model_copy(
                    update={"trainer": {"enable_progress_bar": False, **config.trainer}}
                )
            get_object(job.run)(
                config, job.command, folder=JobFolder(job.folder), since=job.since, out=console
            )
        except Interrupted as error:
            raise Leave from error
        except (Exception, SystemExit) as error:
            console.print(traceback.format_exc(), markup=False, soft_wrap=True)
            return describe(error)
    return None


def describe(error: BaseException) -> str:
    """An error in words; that of the user in its own."""
    text = str(error).strip()
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".rstrip(": ")
