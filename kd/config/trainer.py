"""Options of Lightning's Trainer: those for users, their ranges, and replacements for the
others.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from kd.config.checking import validate
from kd.config.fields import AcceptedValue
from kd.config.precision import ACCEPTED, read_precision
from kd.errors import UserError


def _whole(found: object) -> bool:
    return type(found) is int and found > 0


def _devices(found: object) -> bool:
    if isinstance(found, list):
        numbers = all(type(each) is int and each >= 0 for each in found)
        return numbers and 0 < len(found) == len(set(found))
    return _whole(found) or found in ("auto", -1)


def _batches(found: object) -> bool:
    return _whole(found) or (type(found) is float and 0 < found <= 1)


def _duration(found: object) -> bool:
    units = {"weeks", "days", "hours", "minutes", "seconds"}
    if isinstance(found, dict):
        numbers = all(type(each) in (int, float) and each >= 0 for each in found.values())
        return found.keys() <= units and numbers and any(found.values())
    shape = r"(?=.*[1-9])\d+:\d\d:\d\d:\d\d"
    return isinstance(found, str) and bool(re.fullmatch(shape, found))


Whole = Annotated[object, AcceptedValue("a whole number from 1", _whole)]
Devices = Annotated[
    object,
    AcceptedValue(
        "a whole number from 1, auto or -1 for all, or a list of GPUs as [0,1]", _devices
    ),
]
Batches = Annotated[
    object,
    AcceptedValue("a number of batches from 1, or a share of them above 0 and up to 1.0", _batches),
]
Steps = Annotated[
    object,
    AcceptedValue("a whole number from 1, or -1 for no limit", lambda it: _whole(it) or it == -1),
]
Duration = Annotated[
    object,
    AcceptedValue("'days:hours:minutes:seconds', as '00:01:30:00', or {hours: 1}", _duration),
]


class Options(BaseModel):
    """Options in `trainer.`; null keeps Lightning's default.

    See https://lightning.ai/docs/pytorch/stable/common/trainer.html#trainer-flags.

    Attributes:
        compile: compile student and teacher with torch.compile; takes half a minute per net at the
            start.
        limit_test_batches: tests on a part of the test images; the report then says that its
            figures mean nothing.
        profiler: writes the time of each part of the loop into the stage's folder.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    accelerator: str | None = None
    strategy: str | None = None
    devices: Devices = None
    num_nodes: Whole = None
    precision: Annotated[object, Field(description=f"one of {', '.join(ACCEPTED)}")] = None
    max_epochs: Whole = None
    min_epochs: Whole = None
    max_steps: Steps = None
    min_steps: Whole = None
    max_time: Duration = None
    limit_train_batches: Batches = None
    limit_val_batches: Batches = None
    limit_test_batches: Batches = None
    log_every_n_steps: NonNegativeInt | None = None
    enable_progress_bar: bool | None = None
    accumulate_grad_batches: PositiveInt | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: Annotated[
        object, AcceptedValue("true, false or warn", lambda it: it in (True, False, "warn"))
    ] = None
    benchmark: bool | None = None
    compile: bool | None = None
    inference_mode: bool | None = None
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    detect_anomaly: bool | None = None
    sync_batchnorm: bool | None = None


# Trainer options reserved for kd, each with what to set or do instead.
INSTEAD = {
    "logger": "set logger=tensorboard, csv, wandb or mlflow, or a list of them",
    "callbacks": "early_stopping, ema and keep choose them",
    "plugins": "precision and strategy choose them",
    "default_root_dir": "set output_dir, where everything goes",
    "enable_checkpointing": "without checkpoints no run could go on after a kill",
    "enable_model_summary": "report.md has the nets' sizes",
    "num_sanity_val_steps": "the nets and losses are tried out before the first stage",
    "use_distributed_sampler": "kd shares the images out itself, each to one device",
    "gradient_clip_val": "set gradient_clip, and teacher.gradient_clip for the teacher",
    "fast_dev_run": "set trainer=smoke, two batches of everything",
    "barebones": "it would leave no checkpoint and no curve",
    "check_val_every_n_epoch": "each epoch is validated, and the best one is kept",
    "val_check_interval": "each epoch is validated at its end, and the best one is kept",
    "overfit_batches": "set data.limit=N data/augment=none to train on N images",
    "limit_predict_batches": "training predicts nothing; see python -m kd.predict",
    "reload_dataloaders_every_n_epochs": "data.augment and data.views vary the images",
    "enable_autolog_hparams": "config.yaml in the run's folder has all settings",
    "model_registry": "the run's folder has student.safetensors",
}


def trainer_options(found: dict[str, object]) -> dict[str, object]:
    """Return the options that are set, checked.

    Raises:
        UserError: out of range, reserved for kd (says what to set instead), or unknown to the
            Trainer.
    """
    given = {name: value for name, value in found.items() if value is not None}
    for name in INSTEAD.keys() & given:
        raise UserError(f"trainer.{name}: kd sets it; {INSTEAD[name]}")
    options = validate(Options, given, "trainer.")
    for name in ("min_epochs", "min_steps"):
        if getattr(options, name) and isinstance(options.max_steps, int) and options.max_steps > 0:
            raise UserError(f"trainer.{name}: cannot be set together with trainer.max_steps")
    precision = read_precision(given.get("precision", "auto"), "trainer.precision")
    return {**options.model_dump(exclude_none=True), "precision": precision}


def batches_of(options: Mapping[str, object], name: str, batches: int) -> int:
    """Return how many batches an option such as `limit_train_batches` leaves; all if it is not set.

    Raises:
        UserError: it leaves none; says which shares leave one or more.
    """
    found = options.get(name)
    if not isinstance(found, float):
        return min(found, batches) if isinstance(found, int) else batches
    if not (left := int(found * batches)):
        raise UserError(
            f"trainer.{name}: found {found}, which is less than one of {batches} batches; "
            "accepted are numbers of batches from 1, or shares from "
            f"{math.ceil(1e4 / batches) / 1e4:g} to 1.0"
        )
    return left


def epochs_of(options: Mapping[str, object], epochs: int) -> int:
    """Return how many of these epochs `max_epochs` leaves; all if it is not set."""
    most = options.get("max_epochs")
    return min(most, epochs) if isinstance(most, int) else epochs


TRIAL_BATCH = 32  # images in a batch of a trial


def is_trial(options: Mapping[str, object]) -> bool:
    """Whether both training and test are short, as in `trainer=smoke`."""
    short = ("limit_train_batches", "limit_test_batches")
    return all(options.get(name) is not None for name in short)


def trial_note(options: Mapping[str, object]) -> list[str]:
    """Return the warning for a trial's figures; nothing for other options."""
    if "limit_test_batches" not in options:
        return []
    return ["A trial on a few batches of everything: its figures mean nothing."]


TrainerOptions = Annotated[dict[str, object], AfterValidator(trainer_options)]
