"""Lightning's Trainer for one stage: the options that are the user's, and those that are kd's own."""

import importlib.util
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning_utilities.core.rank_zero import rank_zero_only

from kd.config.construct import REFUSALS
from kd.config.precision import device_of
from kd.errors import UserError
from kd.files.checkpoints import WholeCheckpoints
from kd.files.events import tell_once
from kd.training.averaging import Averaged
from kd.training.callbacks import Best, Curves, StepLimit

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}

# Strategies that start a device's process as a copy of this one, and not by running the command once more.
COPIES_ITSELF = ("ddp_spawn", "ddp_fork", "ddp_notebook")


def make_trainer(
    spec: Mapping[str, Any], folder: Path, runtime: Mapping[str, Any], own: list[Callback]
) -> L.Trainer:
    """The Trainer of a stage.

    Args:
        spec: as `kd.stages.stage.Stage.spec`.
        folder: the stage's.
        runtime: options that change nothing in the result.
        own: callbacks of the stage, which come before the usual ones.

    Raises:
        UserError: for options that go together with nothing here.
    """
    options = {
        "enable_progress_bar": sys.stderr.isatty(),
        "gradient_clip_val": spec["gradient_clip"],
        **runtime,
        **spec["trainer"],
        "max_epochs": spec["epochs"],
        "default_root_dir": str(folder),
        "logger": Curves(str(folder), name="tensorboard", version="", default_hp_metric=False),
        "callbacks": own + _callbacks(spec, folder),
    }
    if options["enable_progress_bar"]:
        options["callbacks"].append(RichProgressBar(leave=False))
    if kind := options.pop("profiler", None):
        options["profiler"] = PROFILERS[kind](dirpath=folder, filename="profile")
    return _checked(options)


@contextmanager
def sent_as_bytes() -> Iterator[None]:
    """Send tensors to processes that start meanwhile through their pipe, instead of torch's way by shared memory.

    A container has 64 MB of that if nothing else is asked for, and less than the images and the nets take.
    """
    reducers: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    shared = {kind: how for kind, how in reducers.items() if kind.__module__.startswith("torch")}
    for kind in shared:
        del reducers[kind]
    try:
        yield
    finally:
        reducers.update(shared)


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse options that the Trainer does not take together, or not on this machine.

    Raises:
        UserError: naming the option.
    """
    if options.get("compile"):
        check_compiler(device_of(str(options.get("accelerator", "auto"))))
    plain = {"precision": None, "profiler": None, "logger": False, "enable_checkpointing": False}
    _checked({**options, **plain})


def check_compiler(device: str) -> None:
    """Refuse torch.compile where what it needs is missing.

    Raises:
        UserError: there is no C++ compiler, or no Triton on a GPU.
    """
    if device == "cuda":
        needed, there = "Triton", importlib.util.find_spec("triton") is not None
    else:
        needed = "a C++ compiler (g++, clang++, or what CXX names)"
        there = any(map(shutil.which, [os.environ.get("CXX") or "g++", "clang++"]))
    if not there:
        raise UserError(
            f"trainer.compile: found true, which needs {needed} here, and there is none; install it, or leave it false"
        )


def _checked(asked: Mapping[str, Any]) -> L.Trainer:
    _quiet()
    # `compile` is for `kd.training.fit`.
    options = {name: value for name, value in asked.items() if name != "compile"}
    options.setdefault("benchmark", not options.get("deterministic"))
    try:
        trainer = L.Trainer(
            **options,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the loaders share the images out among ranks themselves
            # One process of ours starts the others. Lightning's way on SLURM, a task for each device, would run the
            # whole command in each; and its checkpoint at SIGUSR1, in the middle of an epoch, would not resume to the
            # same bits.
            plugins=[LightningEnvironment(), WholeCheckpoints()],
        )
    except (MisconfigurationException, ImportError, *REFUSALS) as error:
        raise UserError(f"trainer: {error}") from error
    _check_strategy(trainer, options.get("strategy"))
    if options.get("sync_batchnorm") and isinstance(trainer.accelerator, CPUAccelerator):
        raise UserError(
            "trainer.sync_batchnorm: found true on a CPU; torch synchronises batch norm between GPUs alone"
        )
    if trainer.num_devices == 1:
        # Lightning guesses it from RANK, LOCAL_RANK and SLURM_PROCID, and all but rank 0 write no curves.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    return trainer


def _check_strategy(trainer: L.Trainer, asked: Any) -> None:
    """Refuse more nodes than one, and ways to start the processes of several devices that would not end well."""
    if trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes: found {trainer.num_nodes}; a training takes one node, and several devices of it with "
            "trainer=ddp; hydra/launcher=submitit_slurm spreads the jobs of a sweep over nodes"
        )
    if trainer.num_devices > 1 and not str(asked).startswith(COPIES_ITSELF):
        raise UserError(
            f"trainer.strategy: found {asked!r} for {trainer.num_devices} devices, which would start the whole command "
            "once more for each; accepted is ddp_spawn (trainer=ddp)"
        )
    forks = str(asked).startswith(("ddp_fork", "ddp_notebook"))
    if forks and torch.get_num_threads() > 1:  # a copy would wait for OpenMP threads it lacks
        raise UserError(
            f"trainer.strategy: found {asked!r} with {torch.get_num_threads()} threads, with which forked processes "
            "hang; set OMP_NUM_THREADS=1, or take ddp_spawn (trainer=ddp)"
        )


def _callbacks(spec: Mapping[str, Any], folder: Path) -> list[Callback]:
    # Two of them, because `save_last` beside `monitor` rewrites last.ckpt only when the best changes.
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
    callbacks: list[Callback] = [StepLimit(), best, last]
    if spec["ema"] is not None or spec["swa"] is not None:
        callbacks.append(Averaged(ema=spec["ema"], swa=spec["swa"]))
    if spec["early_stopping"] is not None:
        callbacks.append(EarlyStopping("val/acc", mode="max", patience=spec["early_stopping"]))
    return callbacks


def _quiet() -> None:
    """Silence what Lightning says about choices that are made here on purpose, and what is told elsewhere."""
    tell_once()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*exists and is not empty.*",
        ".*The number of training batches.*",
        ".*AMP with fp16 is not supported on CPU.*",
        ".*Checkpoint directory.*",
        ".*in eval mode at the start of training.*",
    ):
        warnings.filterwarnings("ignore", message)
