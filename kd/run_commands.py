"""The commands on a finished run: name, request and body of each."""

from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import hydra
from hydra.utils import get_method
from omegaconf import DictConfig

from kd.command import CONF, job, run_command, this_command
from kd.config.checking import as_floats, check_as
from kd.config.schema import RunRequest
from kd.evaluation.requests import Benchmark, Evaluate
from kd.runs.reader import open_run
from kd.shipping.requests import Export, Publish


@dataclass(frozen=True)
class RunCommand:
    """A command on a finished run.

    Attributes:
        name: what follows `python -m kd.`; also the name of its config.
        request: schema of its config.
        body: dotted path of the function that gets the run, the request and the command line.
        floats: keys of numbers, which may be typed as 1e-3.
    """

    name: str
    request: type[RunRequest]
    body: str
    floats: tuple[str, ...] = ()


TABLE = (
    RunCommand("evaluate", Evaluate, "kd.evaluation.evaluation.evaluate"),
    RunCommand("benchmark", Benchmark, "kd.evaluation.costs_of_run.benchmark", ("seconds",)),
    RunCommand("export", Export, "kd.shipping.export_run.export", ("tolerance", "max_loss")),
    RunCommand("publish", Publish, "kd.shipping.hub.publish"),
)


def command_of(name: str) -> RunCommand:
    """Return the command of a name in `TABLE`."""
    return {each.name: each for each in TABLE}[name]


def read_request(command: RunCommand, cfg: DictConfig, typed: set[str]) -> RunRequest:
    """Check a command's composed config.

    Args:
        typed: top-level keys on the command line.

    Raises:
        UserError: names the key.
    """
    as_floats(cfg, list(command.floats))
    request = check_as(command.request, cfg)
    request._typed = frozenset(typed)
    return request


def start_command(name: str, doc: str | None) -> NoReturn:
    """Run a command of `TABLE`.

    Args:
        doc: the text of its `--help`.
    """
    command = command_of(name)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    @partial(job, checked=partial(read_request, command))
    def main(request: RunRequest) -> None:
        run = open_run(request.run, trust=request.trust)
        # Importing torch takes seconds; first refuse what is no run
        get_method(command.body)(run, request, this_command(f"kd.{name}"))

    run_command(main, f"kd.{name}", command.request, doc)
