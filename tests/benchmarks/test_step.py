"""A training step of kd against the student's bare arithmetic."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from conftest import ROUNDS
from in_turn import Row, compared, in_turn
from omegaconf import OmegaConf
from part_of_cifar10 import PartOfCIFAR10
from torch import Tensor, nn

from kd.command import CONF
from kd.config.precision import resolve_precision
from kd.files.stage_record import StageSpec
from kd.nets.cnn import CNN
from kd.nets.resnet import ResNet
from kd.teachers.answer_record import AnswerRecord
from kd.teachers.cached_teacher import CachedTeacher
from kd.teachers.frozen_teacher import FrozenTeacher
from kd.teachers.live_teacher import LiveTeacher
from kd.teachers.sized_teacher import TeacherViews
from kd.teachers.view_files import Room, ViewFiles
from kd.training import fit as fitting
from kd.training.loss_spec import read_loss

BATCH, EPOCHS = 128, 2
NORMAL = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
KD = {"_target_": "kd.losses.kd.kd_loss", "temperature": 4.0}


class Clock(L.Callback):
    """Milliseconds of each step of an epoch, from its first batch's start to its last batch's
    end.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started: float | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = self.started or time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.started
        self.ended = time.perf_counter() - self.started

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds.append(self.ended / trainer.num_training_batches)


def net(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return CNN(10, 3, width)


PRECISION = resolve_precision("auto", "cpu", "trainer.precision")


def mixed() -> torch.autocast:
    """Autocast to bf16 where that is the default precision."""
    return torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16-mixed")


def a_step(logits_t: Callable[[Tensor], Tensor], count: int) -> Callable[[], float]:
    """Seconds of a bare step: forward, loss, backward, optimiser; on one resident, augmented
    batch, in the default precision.
    """
    student = net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    x = torch.rand(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (BATCH,))

    def steps() -> float:
        started = time.perf_counter()
        for _ in range(count):
            with mixed():
                answers, logits = logits_t(x), student(x).float()
            soft = F.softmax(answers.float() / 4, 1)
            loss = 0.1 * F.cross_entropy(logits, y)
            loss = loss + 0.9 * 16 * F.kl_div(
                F.log_softmax(logits / 4, 1), soft, reduction="batchmean"
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - started) / count

    return steps


def a_fit(
    data: PartOfCIFAR10, teacher: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], float]:
    """Time a step inside one of our stages: views, logging and callbacks included."""
    objective = {"ce_weight": 0.1, "terms": {"kd": {"weight": 0.9, "loss": KD}}}
    spec = StageSpec(
        recipe=0, shape=(*data.shape,), data={}, net={}, objective=objective,
        epochs=EPOCHS, batch_size=BATCH, keep="last", lr_schedule="onecycle",
        trainer={"precision": PRECISION}, optim={"_target_": "torch.optim.AdamW", "lr": 1e-4},
    )  # fmt: skip
    logger = OmegaConf.to_container(OmegaConf.load(CONF / "logger" / "tensorboard.yaml"))
    made = fitting._callbacks
    runs = iter(range(10**6))

    def stage() -> float:
        clock = Clock()
        monkeypatch.setattr(fitting, "_callbacks", lambda job: [*made(job), clock])
        here = folder / str(next(runs))
        here.mkdir()
        runtime = {"accelerator": "cpu", "enable_progress_bar": False, "logger": logger}
        job = fitting.TrainingJob(
            "distill", spec, read_loss(objective), data, runtime, teacher=teacher
        )
        fitting.fit(net(), job, here)
        return fmean(clock.seconds[1:])  # the first epoch warms up

    return stage


def part(cifar10: str, steps: int) -> PartOfCIFAR10:
    return PartOfCIFAR10(
        cifar10, count=BATCH * steps, views=1, augment={"crop_padding": 4, "horizontal_flip": True}
    )


@pytest.fixture(scope="module")
def frozen() -> FrozenTeacher:
    torch.manual_seed(0)
    return FrozenTeacher(ResNet(10, 18, image_size=32), *NORMAL)


def test_a_cached_step(
    cifar10: str,
    frozen: FrozenTeacher,
    tell: Callable[[Row], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With cached teacher outputs, only the overhead over the student's arithmetic remains."""
    # As long as an epoch of the sweep, since some work is done once per epoch.
    steps = 40
    data = part(cifar10, steps)
    images = data.split.train
    files = ViewFiles(Room(tmp_path / "cache", 1.0), "key", len(images), AnswerRecord(10))
    cached = CachedTeacher(LiveTeacher(frozen), TeacherViews(images, data.augment, 0), files=files)
    soft = torch.randn(BATCH, 10)
    sides = {
        "ours": a_fit(data, cached, tmp_path, monkeypatch),
        "floor": a_step(lambda x: soft, steps),
    }
    found = in_turn(sides, ROUNDS)
    tell(
        compared(
            "cached step / bare step",
            found["ours"],
            found["floor"],
            target=1.1,
            unit="ms",
            scale=1000,
        )
    )


def test_a_live_step(
    cifar10: str,
    frozen: FrozenTeacher,
    tell: Callable[[Row], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a live teacher, compare with its forward pass and the student's arithmetic."""
    teacher = (
        ResNet(10, 18, image_size=32)
        .eval()
        .requires_grad_(False)
        .to(memory_format=torch.channels_last)
    )

    @torch.no_grad()
    def asked(x: Tensor) -> Tensor:
        return teacher(x)

    steps = 10
    live = a_fit(part(cifar10, steps), LiveTeacher(frozen), tmp_path, monkeypatch)
    sides = {"ours": live, "floor": a_step(asked, steps)}
    found = in_turn(sides, ROUNDS)
    tell(
        compared(
            "live step / teacher and bare step",
            found["ours"],
            found["floor"],
            target=1.1,
            unit="ms",
            scale=1000,
        )
    )
