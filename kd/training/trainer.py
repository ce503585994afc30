"""Lightning's Trainer for one stage: the user's options and kd's own."""

import importlib.util
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
)
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import StrategyRegistry
from lightning_utilities.core.rank_zero import rank_zero_only

from kd.config.construct import REFUSALS
from kd.config.precision import device_of
from kd.errors import UserError, nearest
from kd.files.checkpoints import WholeCheckpoints
from kd.files.events import silence_writer_traceback
from kd.files.stage_record import StageSpec
from kd.training.averaging import WeightAverage
from kd.training.callbacks import Best, Progress, StepLimit
from kd.training.devices import USUAL, resolve_devices
from kd.training.loggers import begin_logging, make_loggers

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def make_trainer(
    spec: StageSpec,
    folder: Path,
    runtime: Mapping[str, object],
    own: list[Callback],
    validates: bool = True,
) -> L.Trainer:
    """Build the Trainer of a stage.

    Args:
        spec: as `kd.stages.stage.Stage.spec`.
        folder: of the stage.
        runtime: options that do not change the result; of `logger` the nodes by name.
        own: the stage's callbacks, placed before the usual ones.

    Raises:
        UserError: incompatible options.
    """
    callbacks = own + _callbacks(spec, folder, validates)
    nodes = runtime["logger"]
    assert isinstance(nodes, dict)
    options: dict[str, Any] = {
        "enable_progress_bar": sys.stderr.isatty(),
        "gradient_clip_val": spec.gradient_clip,
        **runtime,
        **spec.trainer,
        "max_epochs": spec.epochs,
        "default_root_dir": str(folder),
        "logger": make_loggers(nodes, folder),
        "callbacks": callbacks,
    }
    if options["enable_progress_bar"]:
        callbacks.append(Progress(leave=False))
    if kind := options.pop("profiler", None):
        options["profiler"] = PROFILERS[kind](dirpath=folder, filename="profile")
    trainer = construct_trainer(options)
    begin_logging(trainer, list(nodes), folder, spec.plain())
    return trainer


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse options that the Trainer does not accept together, or not on this machine.

    Raises:
        UserError: names the option.
    """
    if options.get("compile"):
        check_compiler(device_of(str(options.get("accelerator", "auto"))))
    plain = {"precision": None, "profiler": None, "logger": False, "enable_checkpointing": False}
    construct_trainer({**options, **plain})


def check_compiler(device: str) -> None:
    """Refuse torch.compile if its requirements are missing.

    Raises:
        UserError: no C++ compiler, or no Triton on a GPU.
    """
    if device == "cuda":
        needed = "Triton"
        there = importlib.util.find_spec("triton") is not None
    else:
        needed = "a C++ compiler (g++, clang++, or what CXX names)"
        there = any(map(shutil.which, [os.environ.get("CXX") or "g++", "clang++"]))
    if not there:
        raise UserError(
            f"trainer.compile: found true, which needs {needed} here, and there is none; "
            "install it, or leave it false"
        )


def construct_trainer(asked: Mapping[str, Any]) -> L.Trainer:
    """Build Lightning's Trainer for this process's devices.

    Raises:
        UserError: it refuses an option.
    """
    _quiet()
    # `compile` is for `kd.training.fit`.
    asked, place = resolve_devices(
        {name: value for name, value in asked.items() if name != "compile"}
    )
    _check_strategy(str(asked.get("strategy", "auto")))
    options = {"benchmark": not asked.get("deterministic"), **asked}
    try:
        trainer = L.Trainer(
            **options,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the loaders distribute the images to ranks themselves
            # Not Lightning's for SLURM, whose checkpoint at SIGUSR1, in the middle of an epoch,
            # would not resume to the same bits.
            plugins=[place, WholeCheckpoints()],
        )
    except (MisconfigurationException, ImportError, *REFUSALS) as error:
        raise UserError(f"trainer: {error}") from error
    if options.get("sync_batchnorm") and isinstance(trainer.accelerator, CPUAccelerator):
        raise UserError(
            "trainer.sync_batchnorm: found true on a CPU; torch synchronises batch norm "
            "between GPUs alone"
        )
    if trainer.world_size == 1:
        # Lightning guesses it from RANK, LOCAL_RANK and SLURM_PROCID, and only rank 0 writes
        # curves.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    return trainer


def _check_strategy(strategy: str) -> None:
    """Refuse a strategy that Lightning does not have, and to fork beside OpenMP threads: the copy
    would wait for threads that it lacks.
    """
    known = ("auto", *StrategyRegistry.available_strategies())
    if strategy not in known:
        raise UserError(
            f"trainer.strategy: found {strategy!r}; accepted are {', '.join(USUAL)} and others of "
            f"Lightning's{nearest(strategy, known)}"
        )
    if strategy.startswith(("ddp_fork", "ddp_notebook")) and torch.get_num_threads() > 1:
        raise UserError(
            f"trainer.strategy: found {strategy!r} with {torch.get_num_threads()} threads, with "
            "which forked processes hang; set OMP_NUM_THREADS=1, or take ddp_spawn "
            "(trainer=ddp)"
        )


def _callbacks(spec: StageSpec, folder: Path, validates: bool) -> list[Callback]:
    # Two callbacks: `save_last` beside `monitor` rewrites last.ckpt only when the best changes.
    best = Best(
        folder, "best", monitor="val/acc", mode="max", save_top_k=1, enable_version_counter=False
    )
    last = ModelCheckpoint(
        folder,
        "last",
        save_top_k=1,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [StepLimit(), *([best] if validates else []), last]
    if spec.ema is not None or spec.swa is not None:
        callbacks.append(WeightAverage(ema=spec.ema, swa=spec.swa))
    if spec.early_stopping is not None:
        callbacks.append(EarlyStopping("val/acc", mode="max", patience=spec.early_stopping))
    return callbacks


def _quiet() -> None:
    """Silence Lightning's warnings about deliberate choices, and messages that kd logs itself."""
    silence_writer_traceback()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*exists and is not empty.*",
        ".*The number of training batches.*",
        ".*AMP with fp16 is not supported on CPU.*",
        ".*Checkpoint directory.*",
        ".*in eval mode at the start of training.*",
        ".*have no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", message)
