"""Loggers of a stage: Lightning's own, as conf/logger names them."""

import contextlib
import functools
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from kd.config.construct import construct, first_line, parameters_of, resolve_target
from kd.config.fields import Node
from kd.errors import UserError
from kd.log import say

EXTRAS = ("wandb", "mlflow")  # loggers whose package is an extra of ours, of the same name
IDS = "logger_ids.json"  # in the stage's folder: what a resumed attempt goes on with
RESUMES = ("id", "run_id")  # the parameter for it, where a logger has one
CALLS = ("log_metrics", "log_hyperparams", "save", "finalize", "after_save_checkpoint")
TIMEOUT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # seconds
PAUSE = 60.0  # seconds for which a logger that failed is left alone; twice as long each time


class Curves(TensorBoardLogger):
    """Writes into `save_dir/tensorboard`, without `epoch`, which Lightning adds to every call,
    several times per step.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values as they come, at their optimiser step."""
        super().log_metrics(
            {name: value for name, value in metrics.items() if name != "epoch"}, step
        )


class Outage:
    """What a logger's failures cost: a message and the values in between, but not the training.

    Lightning lets a logger's exception end the training. TensorBoard's may: it means that the
    output folder cannot be written, so neither can checkpoints.

    Args:
        where: config key of the logger.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.failures = 0
        self.until = 0.0  # time of `time.monotonic` up to which it is left alone

    def bear(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap one of the logger's calls, which then returns this where it fails."""

        @functools.wraps(call)
        def borne(*args: object, **keywords: object) -> Any:
            if time.monotonic() < self.until:
                return self
            try:
                # Else MLflow's client would ask an absent server for minutes
                with _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="2", **TIMEOUT):
                    return call(*args, **keywords)
            except Exception as error:  # of any package's own kind
                if not self.failures:
                    say(
                        f"{self.where}: {shorten(first_line(error), 200)}; the training goes on, "
                        "and the logger is tried again later. report.json will have the curves"
                    )
                self.until = time.monotonic() + PAUSE * 2**self.failures
                self.failures += 1
                return self

        return borne


def make_loggers(nodes: Mapping[str, Node], folder: Path) -> list[Logger]:
    """Build a stage's loggers; one with an identity of its own goes on as the earlier attempt's.

    Args:
        nodes: by name; `{folder}` in them is replaced.

    Raises:
        UserError: a package is missing, or the logger refuses an option.
    """
    ids = json.loads(file.read_text()) if (file := folder / IDS).exists() else {}
    found = {name: _build(name, node, folder, ids.get(name)) for name, node in nodes.items()}
    return [_lasting(name, logger) for name, logger in found.items()]


def _lasting(name: str, logger: Logger) -> Logger:
    """Have a logger's failures cost no training."""
    if not isinstance(logger, TensorBoardLogger):
        outage = Outage(f"logger.{name}")
        for call in CALLS:
            setattr(logger, call, outage.bear(getattr(logger, call)))
    return logger


def _build(name: str, node: Node, folder: Path, known: str | None = None) -> Logger:
    where = f"logger.{name}"
    filled = json.loads(json.dumps(node).replace("{folder}", json.dumps(str(folder))[1:-1]))
    accepted = parameters_of(resolve_target(node, where)[0])
    again = {each: known for each in RESUMES if known and each in accepted}
    try:
        found = construct({**filled, **again}, where)
    except ImportError as error:
        advice = f"pip install 'kd[{name}]'" if name in EXTRAS else first_line(error)
        raise UserError(f"{where}: {name} is not installed: {advice}") from error
    except Exception as error:  # of the packages' own kinds, all about the options
        raise (
            error if isinstance(error, UserError) else UserError(f"{where}: {first_line(error)}")
        ) from error
    if not isinstance(found, Logger):
        raise UserError(f"{where}._target_: {type(found).__name__} is no logger of Lightning's")
    return found


def check_loggers(nodes: Mapping[str, Node]) -> None:
    """Refuse loggers that cannot log from here, before anything is trained.

    Raises:
        UserError: a package is missing, nobody is logged in, or no server answers.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, node in nodes.items():
            logger = _build(name, node, Path(folder))
            if isinstance(logger, WandbLogger):
                _check_wandb(node, f"logger.{name}")
            elif isinstance(logger, MLFlowLogger):
                _check_mlflow(node, f"logger.{name}")


def _check_wandb(node: Node, where: str) -> None:
    import wandb

    online = not node.get("offline") and wandb.setup().settings.mode == "online"
    if online and not wandb.login(prompt=False, verify=False):
        raise UserError(
            f"{where}: nobody is logged in to Weights & Biases; type `wandb login`, set "
            f"WANDB_API_KEY, or {where}.offline=true"
        )


def _check_mlflow(node: Node, where: str) -> None:
    """Ask the server once, and make the experiment, which parallel jobs would all make."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for each retry
    uri = str(node.get("tracking_uri"))
    experiment = str(node.get("experiment_name"))
    with _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", **TIMEOUT):
        try:
            client = MlflowClient(uri)
            if client.get_experiment_by_name(experiment) is None:
                with contextlib.suppress(MlflowException):  # another job made it meanwhile
                    client.create_experiment(experiment)
        except Exception as error:  # of its own and of the network's kinds
            raise UserError(f"{where}.tracking_uri: {uri}: {first_line(error)}") from error


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables that are not set, for the block."""
    added = [name for name in variables if name not in os.environ]
    os.environ |= {name: variables[name] for name in added}
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def begin_logging(
    trainer: L.Trainer, names: Sequence[str], folder: Path, spec: Mapping[str, object]
) -> None:
    """Give the loggers but TensorBoard the stage's settings, and remember their identities.

    A logger that fails in this is left out, as Lightning would ask it again without bearing it.

    Args:
        names: of the trainer's loggers, in order.
        spec: the stage's, plain.
    """
    if not trainer.is_global_zero:
        return
    ids = {}
    kept = []
    for name, logger in zip(names, trainer.loggers, strict=True):
        others = not isinstance(logger, TensorBoardLogger)
        if others and isinstance(logger.log_hyperparams(dict(spec)), Outage):
            continue
        kept.append(logger)
        if others:
            ids[name] = logger.version
    trainer.loggers = kept
    if ids:
        (folder / IDS).write_text(json.dumps(ids))


def end_logging(loggers: Sequence[Logger]) -> None:
    """Close what would take the next stage's values for this one's: a run of wandb's."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            with contextlib.suppress(Exception):  # told before, by the call that failed
                logger.experiment.finish()


def log_once(nodes: Mapping[str, Node], folder: Path, values: Mapping[str, float]) -> None:
    """Log values that belong to no step, as a run of their own; not with TensorBoard."""
    loggers = [
        each for each in make_loggers(nodes, folder) if not isinstance(each, TensorBoardLogger)
    ]
    for logger in loggers:
        logger.log_metrics(dict(values), step=0)
        logger.finalize("success")
    end_logging(loggers)
