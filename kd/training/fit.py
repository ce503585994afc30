"""One `Trainer.fit`: from a stage's spec, and from nothing else, to trained weights in a folder."""

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)
from torch import Tensor, nn

from kd.config.construct import REFUSALS, check_keywords, check_values
from kd.data.base import DataModule
from kd.errors import Diverged, Interrupted, UserError
from kd.files.checkpoints import WholeCheckpoints, last_good, read_checkpoint
from kd.files.events import tell_once
from kd.files.tensors import save_tensors
from kd.files.writing import writing
from kd.log import say
from kd.nets.build import normalization_of
from kd.teachers.live import Teacher
from kd.teachers.watch import Watched
from kd.training.callbacks import Best, Curves, History, WatchLog
from kd.training.distiller import Distiller
from kd.training.finite import WHAT_HELPS
from kd.training.head_only import HeadOnly, LossOnly, still_average
from kd.training.hooks import hook
from kd.training.objective import Objective
from kd.training.optim import make_optimizer


def fit(
    net: nn.Module,
    spec: Mapping[str, Any],
    name: str,
    data: DataModule,
    folder: Path,
    runtime: Mapping[str, Any],
    *,
    teacher: Teacher | None = None,
    watched: Watched | None = None,
    reference: Tensor | None = None,
    watch: Callable[[Mapping[str, float]], None] | None = None,
    learned: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Train one stage, from where an earlier attempt in the same folder was stopped if there was one.

    Args:
        net: with the weights to start from.
        spec: as `kd.stages.stage.Stage.spec`; all that the result depends on.
        name: what the stage is called, for people.
        folder: gets `weights.safetensors` and `tensorboard/`, and `learned.safetensors` where the loss learns something
            itself; checkpoints are kept there while training.
        runtime: the Trainer options that change nothing in the result.
        teacher: answers for views; needed where the objective asks for it.
        watched: what that teacher says of validation images, to be logged as `teacher/...` in each epoch.
        reference: the teacher's classes on the validation part, for `val/agreement`.
        watch: is shown each epoch's row, those of an earlier attempt too; what it raises ends the training.
        learned: what the loss of the stage that this one starts from had learned itself.

    Returns:
        `history`, a row of metrics for each epoch; `val`, the rows of the `best` and the `last` epoch; `epochs`,
        `steps` and `seconds` of training; `training_params`, the parameters that only training had.

    Raises:
        Interrupted: by Ctrl-C; the next call goes on from the last finished epoch.
        Diverged: the loss is no number any more.
        CannotWrite: such as on a full disk; the next call goes on from the last finished epoch.
        UserError: for settings that the Trainer or the optimiser refuses.
    """
    unlabeled = spec["data"]["unlabeled"] is not None
    distiller = _distiller(net, spec, data, unlabeled, teacher, reference)
    distiller.objective.go_on_from(learned or {})
    history = History(name, watch)
    own = [history, *([WatchLog(watched)] if watched else [])]
    only: dict[str, Callback] = {"head": HeadOnly(data.shape), "loss": LossOnly()}
    own += [only[spec["trains"]]] if "trains" in spec else []
    trainer = _make_trainer(spec, folder, runtime, own)
    ranks = trainer.world_size
    train, val = (
        data.train_loader(spec["batch_size"], spec["seed"], ranks, unlabeled),
        data.val_loader(ranks=ranks),
    )
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    start = last_good(last, best)
    resumed = ", from the last finished epoch of an earlier attempt" if start else ""
    say(f"{name}: training for {spec['epochs']} epochs{resumed}")
    if start:  # Lightning tells the order its epoch too late for workers, which are sent ahead
        train.sampler.set_epoch(start["epoch"] + 1)  # type: ignore[attr-defined]
    try:
        with writing(folder / "tensorboard", f"the curves of {name}"):
            trainer.fit(
                distiller, train, val, ckpt_path=str(last) if start else None, weights_only=True
            )
    except SystemExit:  # how Lightning leaves after Ctrl-C, once it has closed its loops
        raise Interrupted(name) from None
    except Diverged as error:
        raise Diverged(f"{name}: {error}; {WHAT_HELPS}") from None
    end = read_checkpoint(last)
    state = (read_checkpoint(best) if spec["keep"] == "best" else end)["state_dict"]
    save_tensors(_under("net.", state), folder / "weights.safetensors")
    if found := distiller.objective.learned(_under("objective.", state)):
        save_tensors(found, folder / "learned.safetensors")
    last.unlink(missing_ok=True)
    best.unlink(missing_ok=True)
    rows = end["callbacks"]["History"]["rows"]
    top = max(rows, key=lambda row: (row["val/acc"], row["epoch"]))  # as `Best` has it
    return {
        "history": rows,
        "val": {"best": top, "last": rows[-1]},
        "epochs": len(rows),
        "steps": end["global_step"],
        "seconds": rows[-1]["seconds"],
        "training_params": sum(parameter.numel() for parameter in distiller.objective.parameters()),
    }


def _distiller(
    net: nn.Module,
    spec: Mapping[str, Any],
    data: DataModule,
    unlabeled: bool,
    teacher: Teacher | None,
    reference: Tensor | None,
) -> Distiller:
    """What trains the net, as the stage's spec says."""
    # A loss may hold a net of its own, whose start must depend on the seed alone and differ from the student's.
    torch.manual_seed((spec["seed"] * 1_000_003 + 500_009) % 2**63)
    taps, offered = hook(net, spec, teacher, data.shape, data.training(unlabeled).labels)
    return Distiller(
        net,
        Objective(spec["objective"], data.shape, class_weights=data.loss_weights, offered=offered),
        partial(make_optimizer, optim=spec["optim"], schedule=spec["lr_schedule"]),
        augment=data.augment,
        normalization=normalization_of(net, data.statistics),
        seed=spec["seed"],
        views=data.views,
        teacher=teacher,
        reference=reference,
        taps=taps,
        pool=data.training(unlabeled) if data.augment.mixes else None,
    )


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def _make_trainer(
    spec: Mapping[str, Any], folder: Path, runtime: Mapping[str, Any], own: list[Callback]
) -> L.Trainer:
    _quiet()
    check_values(L.Trainer, {**runtime, **spec["trainer"]}, "trainer")
    options = {
        "enable_progress_bar": sys.stderr.isatty(),
        "gradient_clip_val": spec["gradient_clip"],
        **runtime,
        **spec["trainer"],
        "max_epochs": spec["epochs"],
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the loaders share the images out among ranks themselves
        "default_root_dir": str(folder),
        "logger": Curves(str(folder), name="tensorboard", version="", default_hp_metric=False),
        "callbacks": own + _callbacks(spec, folder),
        # One process of ours starts the others. Lightning's way on SLURM, a task for each device, would run the whole
        # command in each; and its checkpoint at SIGUSR1, in the middle of an epoch, would not resume to the same bits.
        "plugins": [LightningEnvironment(), WholeCheckpoints()],
    }
    if options["enable_progress_bar"]:
        options["callbacks"].append(RichProgressBar(leave=False))
    check_keywords(L.Trainer, options, "trainer")
    try:
        trainer = L.Trainer(**options)
    except (MisconfigurationException, ImportError, *REFUSALS) as error:
        raise UserError(f"trainer: {error}") from error
    _check_strategy(trainer, options.get("strategy"))
    return trainer


def _check_strategy(trainer: L.Trainer, asked: Any) -> None:
    """Refuse more nodes than one, and ways to start the processes of several devices that would not end well."""
    if trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes: found {trainer.num_nodes}; a training takes one node, and several devices of it with "
            "trainer=ddp; hydra/launcher=submitit_slurm spreads the jobs of a sweep over nodes"
        )
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        raise UserError(
            f"trainer.strategy: found {asked!r} for {trainer.num_devices} devices, which would start the whole command "
            "once more for each; accepted is ddp_spawn (trainer=ddp)"
        )
    forks = isinstance(launcher, _MultiProcessingLauncher) and launcher._start_method == "fork"
    if (
        forks and torch.get_num_threads() > 1
    ):  # OpenMP's threads are not in the copies, which wait for them for ever
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
    callbacks: list[Callback] = [best, last]
    if spec["ema"] is not None:
        average = still_average if "trains" in spec else EMAWeightAveraging
        callbacks.append(average(decay=spec["ema"]))
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
