"""Invariants of a student's training beside its teacher."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from kd.data.digits import Digits
from kd.data.epoch_views import EpochViews
from kd.data.views import normalize, to_unit
from kd.nets.cnn import CNN
from kd.nets.resnet import ResNet
from kd.shape import Shape
from kd.teachers.frozen_teacher import FrozenTeacher
from kd.teachers.live_teacher import LiveTeacher
from kd.training.callbacks import History
from kd.training.distiller import Distiller
from kd.training.loss_spec import read_loss
from kd.training.objective import Objective
from kd.training.optim import make_optimizer
from kd.training.step_log import StepLog

KD_LOSS = {"weight": 0.5, "loss": {"_target_": "kd.losses.kd.kd_loss", "temperature": 3.0}}


class DropNet(nn.Module):
    """Net with batch norm and dropout, so that every mode matters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        )
        self.fc = nn.Linear(4 * 36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


class Watch(Callback):
    """Record the modes at every training step."""

    def __init__(self) -> None:
        self.student: list[bool] = []
        self.teacher: list[bool] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.student.append(all(m.training for m in pl_module.net.modules()))
        self.teacher.append(any(m.training for m in pl_module.teacher.answers.net.modules()))


def distiller(
    teacher: FrozenTeacher | None, data: Digits, net: nn.Module | None = None, terms: bool = True
) -> Distiller:
    node = {"ce_weight": 0.5, "terms": {"kd": KD_LOSS} if terms else {}}
    optim = {"_target_": "torch.optim.SGD", "lr": 0.05}
    return Distiller(
        net or DropNet(),
        Objective(read_loss(node), data.shape),
        partial(make_optimizer, optim=optim, schedule="constant"),
        views=EpochViews(data.augment, 0),
        normalization=data.statistics,
        seed=0,
        teacher=LiveTeacher(teacher) if teacher else None,
    )


def train(
    module: Distiller, data: Digits, folder: Path, epochs: int = 3, *callbacks: Callback
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[
            ModelCheckpoint(folder, "last", save_on_train_epoch_end=True),
            StepLog(),
            *callbacks,
        ],
    )
    trainer.fit(module, data.train_loader(50, 0), data.val_loader())
    return trainer


@pytest.mark.slow
def test_teacher_is_untouched_and_student_trains(digits: Digits, tmp_path: Path) -> None:
    original = ResNet(10, 18, 1, 8, width=4)
    before = copy.deepcopy(original.state_dict())
    assert original.training  # handed over in train mode, as from a careless user
    teacher, watch = FrozenTeacher(original, *digits.statistics), Watch()
    module = distiller(teacher, digits)
    start = copy.deepcopy(module.net.state_dict())
    trainer = train(module, digits, tmp_path, 3, watch)

    for (
        name,
        tensor,
    ) in teacher.net.state_dict().items():  # buffers too: batch-norm statistics and counters
        assert torch.equal(tensor, before[name]), name
    assert not any(p.requires_grad or p.grad is not None for p in teacher.net.parameters())
    assert len(watch.student) == 12
    assert all(watch.student), (
        "the student must be in train mode in every epoch, after validation too"
    )
    assert not any(watch.teacher)

    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.net.parameters()}
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"net.{name}" for name in module.net.state_dict()}
    assert any(not torch.equal(start[k], v) for k, v in module.net.state_dict().items())


def test_teacher_gives_no_gradient_and_is_always_in_eval(digits: Digits) -> None:
    teacher = FrozenTeacher(DropNet(), *digits.statistics)
    module = distiller(teacher, digits)
    module.train()
    x = torch.rand(8, 1, 8, 8)
    assert not teacher.net.training
    assert torch.equal(teacher(x), teacher(x))  # dropout is off
    assert not teacher(x.requires_grad_()).requires_grad


def test_teacher_is_a_copy(digits: Digits) -> None:
    net = DropNet()
    FrozenTeacher(net, *digits.statistics)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


def test_each_net_gets_its_own_normalisation(digits: Digits) -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return torch.zeros(len(x), 10)

    x = torch.rand(4, 1, 8, 8)
    FrozenTeacher(Spy(), (0.25,), (0.5,))(x)
    assert torch.allclose(seen[0], (x - 0.25) / 0.5)


def test_what_a_loss_learns_is_optimised_and_checkpointed_beside_the_net(
    digits: Digits, tmp_path: Path
) -> None:
    module = distiller(FrozenTeacher(DropNet(), *digits.statistics), digits)
    module.objective = Objective(
        read_loss({"terms": {"ctkd": {"loss": {"_target_": "kd.losses.ctkd.CTKD"}}}}), digits.shape
    )
    (theta,) = module.objective.parameters()
    trainer = train(module, digits, tmp_path, 1)
    assert any(p is theta for group in trainer.optimizers[0].param_groups for p in group["params"])
    assert theta.item() != 1.0  # where it starts
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert checkpoint["objective.terms.0.loss.theta"] == theta
    assert not any("theta" in name for name in module.net.state_dict())


def test_objective_without_teacher_needs_none(digits: Digits, tmp_path: Path) -> None:
    train(distiller(None, digits, terms=False), digits, tmp_path, 1)


def test_what_is_logged(digits: Digits, tmp_path: Path) -> None:
    module = distiller(FrozenTeacher(DropNet(), *digits.statistics), digits)
    module.reference = torch.zeros(len(digits.split.val), dtype=torch.int64)
    trainer = train(module, digits, tmp_path, 1)
    wanted = {
        "train/loss",
        "train/loss_ce",
        "train/loss_kd",
        "train/acc",
        "val/loss",
        "val/acc",
        "val/agreement",
        "lr",
    }
    assert wanted <= set(trainer.callback_metrics)


class Written(CSVLogger):
    """Record what Lightning logs, by step."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step, {}).update(metrics)


@pytest.mark.parametrize("every", [1, 3])
def test_every_term_and_weight_is_logged_by_the_step(
    every: int, digits: Digits, tmp_path: Path
) -> None:
    node = {"weight": {"schedule": "linear", "start": 1, "end": 0}, "loss": KD_LOSS["loss"]}
    module = distiller(FrozenTeacher(DropNet(), *digits.statistics), digits)
    module.objective = Objective(read_loss({"ce_weight": 0.5, "terms": {"kd": node}}), digits.shape)
    logger = Written(tmp_path)
    history = History("net", watch=lambda row: None)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=logger, log_every_n_steps=every,
        callbacks=[StepLog(), history],
        enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, digits.train_loader(50, 0), digits.val_loader())  # 4 steps an epoch
    steps = {step: row for step, row in logger.rows.items() if "train/loss" in row}
    assert sorted(steps) == list(range(every - 1, 8, every))
    for step, row in steps.items():
        assert {
            "train/loss",
            "train/loss_ce",
            "train/weight_ce",
            "train/loss_kd",
            "train/weight_kd",
            "lr",
        } <= set(row)
        assert row["train/weight_kd"] == pytest.approx(1 - step / 8)
        total = 0.5 * row["train/loss_ce"] + row["train/weight_kd"] * row["train/loss_kd"]
        assert row["train/loss"] == pytest.approx(total, rel=1e-5)
    # An epoch's row has the mean of the loss, and the rest of its last step
    if every == 1:
        for epoch, row in enumerate(history.rows):
            values = [steps[4 * epoch + i]["train/loss"] for i in range(4)]
            assert row["train/loss"] == pytest.approx(sum(values) / 4, rel=1e-5)
    assert float(trainer.callback_metrics["train/weight_kd"]) == pytest.approx(1 - 7 / 8)
    assert all("train/acc" in logger.rows[step] for step in (3, 7))


def test_memory_is_not_filled_under_deterministic_algorithms(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # And it is restored afterwards
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    L.Trainer(
        accelerator="cpu",
        deterministic=True,
        fast_dev_run=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(
        distiller(FrozenTeacher(DropNet(), *digits.statistics), digits),
        digits.train_loader(50, 0),
        digits.val_loader(),
    )
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_validation_metrics_are_means_over_images(digits: Digits, tmp_path: Path) -> None:
    module = distiller(FrozenTeacher(DropNet(), *digits.statistics), digits)
    module.reference = torch.randint(0, 10, (len(digits.split.val),))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    # 135 images in batches of 100: the second batch must not have the weight of the first.
    found = trainer.validate(module, digits.val_loader(100), verbose=False)[0]
    val = digits.split.val
    with torch.no_grad():
        logits = module.net.eval()(
            normalize(to_unit(val.pixels[torch.arange(len(val))]), *digits.statistics)
        )
    chosen = logits.argmax(1)
    assert found["val/acc"] == pytest.approx(
        float((chosen == val.labels).double().mean()), abs=1e-6
    )
    assert found["val/loss"] == pytest.approx(
        float(nn.functional.cross_entropy(logits, val.labels)), abs=1e-5
    )
    assert found["val/agreement"] == pytest.approx(
        float((chosen == module.reference).double().mean()), abs=1e-6
    )


def test_half_precision_leaves_the_loss_in_float32() -> None:
    objective = Objective(read_loss({"ce_weight": 0.5, "terms": {"kd": KD_LOSS}}), Shape(1, 8, 10))
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.randn(4, 10).bfloat16().requires_grad_()
        signals = {
            "logits_s": logits,
            "logits_t": torch.randn(4, 10).bfloat16(),
            "target": torch.arange(4),
        }
        parts = objective({**signals, "progress": 0.0})
    losses = {name: value.detach() for name, value in parts.items() if name.startswith("loss")}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    expected = 0.5 * float(losses["loss_ce"]) + 0.5 * float(losses["loss_kd"])
    assert float(losses["loss"]) == pytest.approx(expected, rel=1e-6)


def test_one_net_may_be_a_cnn(digits: Digits, tmp_path: Path) -> None:
    train(
        distiller(FrozenTeacher(DropNet(), *digits.statistics), digits, CNN(10, 1, width=2)),
        digits,
        tmp_path,
        1,
    )
