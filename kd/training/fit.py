"""One `Trainer.fit`: from a stage's spec alone to trained weights in a folder."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kd.data.base import Batch, DataModule
from kd.data.epoch_views import EpochViews
from kd.errors import DivergedError, StopRequest, UserError
from kd.files.checkpoints import last_good, read_checkpoint
from kd.files.stage_record import BestAndLast, StageSpec, TrainingOutcome
from kd.files.tensors import save_tensors
from kd.files.writing import writing
from kd.log import say
from kd.nets.build import normalization_of
from kd.ranks import current, on_all_ranks
from kd.shape import Shape
from kd.teachers.diagnosis import TeacherDiagnosis
from kd.teachers.live_teacher import Teacher
from kd.training.callbacks import DiagnosisLog, History, OwnSignals, RemainingTime
from kd.training.devices import world_size
from kd.training.distiller import Distiller
from kd.training.finite import WHAT_HELPS
from kd.training.head_only import HeadOnly, LossOnly
from kd.training.hooks import hook
from kd.training.loss_spec import LossSpec
from kd.training.objective import Objective
from kd.training.optim import make_optimizer
from kd.training.remaining import Outlook
from kd.training.step_log import StepLog
from kd.training.trainer import make_trainer, send_as_bytes

LAST = "last.ckpt"


def fit(
    net: nn.Module,
    spec: StageSpec,
    loss: LossSpec,
    name: str,
    data: DataModule,
    folder: Path,
    runtime: Mapping[str, object],
    *,
    teacher: Teacher | None = None,
    diagnosis: TeacherDiagnosis | None = None,
    reference: Tensor | None = None,
    watch: Callable[[Mapping[str, float]], None] | None = None,
    learned: Mapping[str, Tensor] | None = None,
    outlook: Outlook | None = None,
) -> TrainingOutcome:
    """Train one stage, or resume an earlier attempt in the same folder.

    Args:
        net: net with its initial weights.
        spec: as `kd.stages.stage.Stage.spec`; covers everything that the result depends on.
        loss: objective of the training.
        name: name of the stage, for people.
        folder: gets `weights.safetensors` and `tensorboard/`, and `learned.safetensors` if the loss
            has parameters; also holds checkpoints during training.
        runtime: Trainer options that do not change the result.
        teacher: gives outputs for views; needed if the objective uses it.
        diagnosis: the teacher's logits on validation images, logged as `teacher/...` per epoch.
        reference: classes that the teacher predicts on the validation part, int64 [N], for
            `val/agreement`.
        watch: receives each epoch's row, also those of an earlier attempt; an exception ends the
            training.
        learned: loss parameters, by name, of the stage that this one starts from.
        outlook: what the run does after it, for messages.

    Raises:
        StopRequest: by Ctrl-C; the next call resumes after the last finished epoch.
        DivergedError: the loss is NaN or infinite.
        WriteError: such as on a full disk; the next call resumes after the last finished epoch.
        UserError: the Trainer or the optimiser refuses settings.
    """
    distiller = _distiller(net, spec, loss, data, teacher, reference)
    distiller.objective.go_on_from(learned or {})
    history = History(name, watch)
    own = [history, *_callbacks(name, spec, diagnosis, data.shape, outlook)]
    ranks = world_size({**runtime, **spec.trainer})
    train = data.train_loader(spec.batch_size, spec.seed, ranks)
    val = data.val_loader(ranks=ranks)
    last = folder / LAST
    best = folder / "best.ckpt"
    start = last_good(last, best)
    resumed = ", from the last finished epoch of an earlier attempt" if start else ""
    say(f"{name}: training for {spec.epochs} epochs{resumed}")
    if start:  # Lightning sets the order's epoch too late for prefetching workers
        train.sampler.set_epoch(start["epoch"] + 1)  # type: ignore[attr-defined]
    try:
        with writing(folder / "tensorboard", f"the curves of {name}"), send_as_bytes():
            on_all_ranks(
                train_together, distiller, spec, folder, runtime, own, (train, val), bool(start)
            )
    except MisconfigurationException as error:
        raise UserError(f"{name}: trainer: {error}") from error
    except SystemExit:  # Lightning's exit after Ctrl-C, once its loops are closed
        raise StopRequest(name) from None
    except DivergedError as error:
        raise DivergedError(f"{name}: {error}; {WHAT_HELPS}") from None
    if not last.exists():
        raise UserError(f"{name}: trainer.max_time was over before the end of the first epoch")
    end = read_checkpoint(last)
    state = (read_checkpoint(best) if spec.keep == "best" else end)["state_dict"]
    save_tensors(_under("net.", state), folder / "weights.safetensors")
    if found := distiller.objective.learned_state(_under("objective.", state)):
        save_tensors(found, folder / "learned.safetensors")
    last.unlink(missing_ok=True)
    best.unlink(missing_ok=True)
    rows = end["callbacks"]["History"]["rows"]
    top = max(rows, key=lambda row: (row["val/acc"], row["epoch"]))  # same rule as `Best`
    return TrainingOutcome(
        history=rows,
        val=BestAndLast(best=top, last=rows[-1]),
        epochs=len(rows),
        steps=end["global_step"],
        seconds=rows[-1]["seconds"],
        training_params=sum(parameter.numel() for parameter in distiller.objective.parameters()),
    )


def _callbacks(
    name: str,
    spec: StageSpec,
    diagnosis: TeacherDiagnosis | None,
    shape: Shape,
    outlook: Outlook | None,
) -> list[Callback]:
    """Return the stage's callbacks besides its history."""
    found: list[Callback] = [StepLog(), RemainingTime(name, outlook)]
    if diagnosis:
        found.append(DiagnosisLog(diagnosis))
    if spec.trains:
        only: dict[str, Callback] = {"head": HeadOnly(shape), "loss": LossOnly()}
        found.append(only[spec.trains])
    return found


def train_together(
    distiller: Distiller,
    spec: StageSpec,
    folder: Path,
    runtime: Mapping[str, object],
    own: list[Callback],
    loaders: tuple[DataLoader[Batch], DataLoader[Batch]],
    resumes: bool,
) -> None:
    """Train, as one of the processes that do so together; all get the same arguments.

    Args:
        own: the stage's callbacks, as of `make_trainer`.
        loaders: of training and validation images.
        resumes: whether to go on from `last.ckpt` in the folder.
    """
    if runtime.get("compile") and distiller.hooks is None:  # hooks would split the compiled graph
        distiller.net.compile()
    own = [*own, OwnSignals()] if current() else own
    trainer = make_trainer(spec, folder, runtime, own)
    path = str(folder / LAST) if resumes else None
    trainer.fit(distiller, *loaders, ckpt_path=path, weights_only=True)


def _distiller(
    net: nn.Module,
    spec: StageSpec,
    loss: LossSpec,
    data: DataModule,
    teacher: Teacher | None,
    reference: Tensor | None,
) -> Distiller:
    """Build the LightningModule from the stage's spec."""
    # A loss may hold a net, whose init must depend only on the seed and differ from the student's.
    torch.manual_seed((spec.seed * 1_000_003 + 500_009) % 2**63)
    hooks, arguments = hook(net, spec, loss, teacher, data.shape, data.split.train.labels)
    return Distiller(
        net,
        Objective(
            loss,
            data.shape,
            class_weights=data.loss_weights,
            label_smoothing=spec.label_smoothing,
            build_arguments=arguments,
        ),
        partial(
            make_optimizer,
            optim=spec.optim,
            schedule=spec.lr_schedule,
            epochs=spec.epochs,
            clips=spec.gradient_clip is not None,
        ),
        views=EpochViews(data.augment, spec.seed, data.views, data.mixing_pool),
        normalization=normalization_of(net, data.statistics),
        seed=spec.seed,
        teacher=teacher,
        reference=reference,
        hooks=hooks,
    )


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
