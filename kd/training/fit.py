"""One `Trainer.fit`: from a stage's spec alone to trained weights in a folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kd.data.base import Batch, DataModule
from kd.data.epoch_views import APART, EpochViews
from kd.errors import DivergedError, StopRequest, UserError
from kd.files.checkpoints import last_good, read_checkpoint, remove_checkpoint
from kd.files.locks import check_exclusion
from kd.files.stage_record import BestAndLast, StageSpec, TrainingOutcome
from kd.files.store import LEARNED, OTHER_EPOCH, WEIGHTS
from kd.files.tensors import save_tensors
from kd.files.writing import writing
from kd.log import number_of, say
from kd.nets.build import normalization_of
from kd.ranks import current, on_all_ranks
from kd.teachers.diagnosis import TeacherDiagnosis
from kd.teachers.live_teacher import Teacher
from kd.training.callbacks import DiagnosisLog, History, OwnSignals, RemainingTime
from kd.training.devices import world_size
from kd.training.distiller import Distiller
from kd.training.dot import TeacherGradients, keeps_momenta_apart
from kd.training.finite import WHAT_HELPS
from kd.training.head_only import FrozenNorms, HeadOnly, LossOnly
from kd.training.hooks import hook
from kd.training.label_loss import label_loss
from kd.training.loggers import end_logging
from kd.training.loss_spec import LossSpec
from kd.training.objective import Objective
from kd.training.optim import make_optimizer
from kd.training.processes import on_devices
from kd.training.remaining import Outlook
from kd.training.step_log import StepLog
from kd.training.strong_views import StrongViews
from kd.training.trainer import make_trainer

LAST = "last.ckpt"
BEST = "best.ckpt"


@dataclass(frozen=True)
class TrainingJob:
    """One training, with all that it is given.

    Attributes:
        name: of the stage, for people.
        spec: as `kd.stages.stage.Stage.spec`; covers everything that the result depends on.
        loss: objective of the training.
        runtime: Trainer options that do not change the result.
        teacher: gives outputs for views; needed if the objective uses it.
        strong_teacher: gives outputs for strong views; needed if the objective uses it.
        diagnosis: the teacher's logits on validation images, logged as `teacher/...` per epoch.
        reference: classes that the teacher predicts on the validation part, int64 [N], for
            `val/agreement`.
        learned: loss parameters, by name, of the stage that this one starts from.
        watch: receives each epoch's row, also those of an earlier attempt; an exception ends the
            training.
        outlook: what the run does after it, for messages.
    """

    name: str
    spec: StageSpec
    loss: LossSpec
    data: DataModule
    runtime: Mapping[str, object]
    teacher: Teacher | None = None
    strong_teacher: Teacher | None = None
    diagnosis: TeacherDiagnosis | None = None
    reference: Tensor | None = None
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    watch: Callable[[Mapping[str, float]], None] | None = None
    outlook: Outlook | None = None


def fit(net: nn.Module, job: TrainingJob, folder: Path) -> TrainingOutcome:
    """Train one stage, or resume an earlier attempt in the same folder.

    Args:
        net: net with its initial weights.
        folder: gets `weights.safetensors` and `tensorboard/`, `learned.safetensors` if the loss has
            parameters, and the weights of the other epoch if the best on validation is not the
            last; also holds checkpoints during training.

    Raises:
        StopRequest: by Ctrl-C; the next call resumes after the last finished epoch.
        DivergedError: the loss is NaN or infinite.
        WriteError: such as on a full disk; the next call resumes after the last finished epoch.
        UserError: the Trainer or the optimiser refuses settings.
    """
    spec = job.spec
    distiller = _distiller(net, job)
    distiller.objective.go_on_from(job.learned)
    own = [History(job.name, job.watch), *_callbacks(job)]
    options = {**job.runtime, **spec.trainer}
    ranks = world_size(options)
    train = job.data.train_loader(spec.batch_size, spec.seed, ranks, drop_last=spec.drop_last)
    val = job.data.val_loader(ranks=ranks) if job.data.split.val else None
    start = last_good(folder / LAST, folder / BEST if val else None)
    resumed = ", from the last finished epoch of an earlier attempt" if start else ""
    say(f"{job.name}: training for {number_of(spec.epochs, 'epoch')}{resumed}")
    if start:  # Lightning sets the order's epoch too late for prefetching workers
        train.sampler.set_epoch(start["epoch"] + 1)  # type: ignore[attr-defined]
    curves = writing(folder / "tensorboard", f"the curves of {job.name}")
    with _errors_with(job.name), curves, on_devices(options):
        on_all_ranks(
            train_together, distiller, spec, folder, job.runtime, own, (train, val), bool(start)
        )
    if not (folder / LAST).exists():
        raise UserError(f"{job.name}: trainer.max_time was over before the end of the first epoch")
    return _outcome(distiller.objective, spec, folder)


@contextmanager
def _errors_with(name: str) -> Iterator[None]:
    """Turn what ends a training into errors that name its stage."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"{name}: trainer: {error}") from error
    except SystemExit:  # Lightning's exit after Ctrl-C, once its loops are closed
        raise StopRequest(name) from None
    except DivergedError as error:
        raise DivergedError(f"{name}: {error}; {WHAT_HELPS}") from None


def _outcome(objective: Objective, spec: StageSpec, folder: Path) -> TrainingOutcome:
    """Write the weights that the stage keeps, and remove its checkpoints."""
    end = read_checkpoint(folder / LAST)
    rows = end["callbacks"]["History"]["rows"]
    top = rows[-1]
    if "val/acc" in top:
        top = max(rows, key=lambda row: (row["val/acc"], row["epoch"]))  # same rule as `Best`
    best = end if top is rows[-1] else read_checkpoint(folder / BEST)
    kept, other = (best, end) if spec.keep == "best" else (end, best)
    state = kept["state_dict"]
    save_tensors(_under("net.", state), folder / WEIGHTS)
    if best is not end:
        save_tensors(_under("net.", other["state_dict"]), folder / OTHER_EPOCH)
    if found := objective.learned_state(_under("objective.", state)):
        save_tensors(found, folder / LEARNED)
    for name in (LAST, BEST):
        remove_checkpoint(folder / name)
    return TrainingOutcome(
        history=rows,
        val=BestAndLast(best=top, last=rows[-1]),
        epochs=len(rows),
        steps=end["global_step"],
        seconds=rows[-1]["seconds"],
        training_params=sum(parameter.numel() for parameter in objective.parameters()),
    )


def _callbacks(job: TrainingJob) -> list[Callback]:
    """Return the stage's callbacks besides its history."""
    found: list[Callback] = [StepLog(), RemainingTime(job.name, job.outlook)]
    if job.loss.strong:
        images = len(job.data.split.train.labels)
        seed = job.spec.seed + APART
        views = EpochViews(job.loss.strong, seed, job.data.views, count=images)
        found.append(StrongViews(views, job.strong_teacher))
    if keeps_momenta_apart(job.spec.optim):
        found.append(TeacherGradients())
    if job.diagnosis:
        found.append(DiagnosisLog(job.diagnosis))
    if job.spec.trains:
        parts: dict[str, Callback] = {
            "head": HeadOnly(job.data.shape),
            "frozen_norms": FrozenNorms(),
            "loss": LossOnly(),
        }
        found.append(parts[job.spec.trains])
    return found


def train_together(
    distiller: Distiller,
    spec: StageSpec,
    folder: Path,
    runtime: Mapping[str, object],
    own: list[Callback],
    loaders: tuple[DataLoader[Batch], DataLoader[Batch] | None],
    resumes: bool,
) -> None:
    """Train, as one of the processes that do so together; all get the same arguments.

    Args:
        own: the stage's callbacks, as of `make_trainer`.
        loaders: of training and validation images; None where there are none.
        resumes: whether to go on from `last.ckpt` in the folder.
    """
    ranks = current()
    lock = folder.with_suffix(".lock")  # of `kd.files.store.Store.claim`, in rank 0
    if ranks and ranks.launch.rank and lock.exists():
        check_exclusion(lock)
    if runtime.get("compile") and distiller.hooks is None:  # hooks would split the compiled graph
        distiller.net.compile()
    own = [*own, OwnSignals()] if ranks else own
    trainer = make_trainer(spec, folder, runtime, own, validates=loaders[1] is not None)
    path = str(folder / LAST) if resumes else None
    try:
        trainer.fit(distiller, *loaders, ckpt_path=path, weights_only=True)
    finally:
        end_logging(trainer.loggers)


def _distiller(net: nn.Module, job: TrainingJob) -> Distiller:
    """Build the LightningModule from the stage's spec."""
    spec = job.spec
    data = job.data
    # A loss may hold a net, whose init must depend only on the seed and differ from the student's.
    torch.manual_seed((spec.seed * 1_000_003 + 500_009) % 2**63)
    labels = data.split.train.labels
    ranks = world_size({**job.runtime, **spec.trainer})
    hooks, arguments = hook(net, spec, job.loss, job.teacher, data.shape, labels, ranks)
    return Distiller(
        net,
        Objective(
            job.loss,
            data.shape,
            of_labels=partial(
                label_loss,
                class_weights=data.loss_weights,
                label_smoothing=spec.label_smoothing,
                offsets=data.logit_offsets,
                focal_gamma=data.focal_gamma,
            ),
            build_arguments=arguments,
        ),
        partial(
            make_optimizer,
            optim=spec.optim,
            schedule=spec.lr_schedule,
            epochs=spec.epochs,
            clips=spec.gradient_clip is not None,
        ),
        views=EpochViews(data.augment, spec.seed, data.views, data.mixing_pool, len(labels)),
        normalization=normalization_of(net, data.statistics),
        seed=spec.seed,
        teacher=job.teacher,
        reference=job.reference,
        hooks=hooks,
    )


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
