"""One job of a comparison: find the method's numbers on validation, then run them with a seed."""

import shlex
import time
from datetime import datetime
from pathlib import Path

from rich.console import Console

from kd.comparison.request import CompareConfig
from kd.data.base import DataModule
from kd.files.run_folder import RunFolder
from kd.log import say
from kd.runs.run import run
from kd.stages.chain import chain_of
from kd.stages.open_data import open_data, source_key
from kd.tuning.request import Request
from kd.tuning.search import Trials, search, words
from kd.tuning.space import overrides_of

POLL = 1.0  # seconds between two looks at trials in other processes


def run_cell(
    config: CompareConfig,
    command: str,
    *,
    folder: RunFolder,
    since: datetime | None = None,
    out: Console | None = None,
) -> Path:
    """Search with the method's other jobs, then finish the run with the best numbers.

    Args:
        command: unused; the run's report names the line of `kd.train` that repeats it.
        folder: to be filled.
        since: see `kd.runs.run.run`.
        out: console for the run's table.

    Returns:
        the run folder.

    Raises:
        CommandError: no trial finished.
        StopRequest: by Ctrl-C; the same command goes on.
    """
    request = config.request()
    tuned: list[str] = []
    data = None
    if config.n_trials:
        chain_of(request.config)  # refuses what is wrong before the data is read
        data = open_data(request.config)
        tuned = overrides_of(_best_setting(request, data))
    own = [*tuned, f"seed={config.seed}"]
    final = request.config_with(own).model_copy(update={"name": config.name})
    line = shlex.join(["python", "-m", "kd.train", *request.overrides, *own])
    if source_key(final) != source_key(request.config):
        data = None
    return run(final, line, data=data, folder=folder, since=since, out=out)


def _best_setting(request: Request, data: DataModule) -> dict[str, str]:
    """Return the best setting of the search, when all of its trials have ended."""
    trials = search(request, data)
    while trials.running() or trials.open():
        _wait(trials)
        trials = search(request, data)  # what a killed process left
    best = trials.best()
    setting: dict[str, str] = best.user_attrs["setting"]
    say(f"Best of {trials.count()} trials on validation: {words(setting)}")
    return setting


def _wait(trials: Trials) -> None:
    """Wait for the trials of other processes."""
    while trials.running():
        time.sleep(POLL)
