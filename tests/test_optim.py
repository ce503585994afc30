"""Optimisers, parameter groups, and learning-rate schedules."""

import copy
import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composed import composed
from safetensors.torch import load_file
from torch import Tensor, nn

from kd.config.schema import Config, check
from kd.errors import UserError
from kd.files.store import WEIGHTS
from kd.nets.cnn import CNN
from kd.runs.run import run
from kd.shape import Shape
from kd.stages.chain import chain_of
from kd.training.averaging import WeightAverage
from kd.training.distiller import Distiller
from kd.training.dot import DOT, TeacherGradients, refuse_beside_dot
from kd.training.label_loss import label_loss
from kd.training.loss_spec import read_loss
from kd.training.muon import Muon, nearest_orthogonal
from kd.training.objective import Objective
from kd.training.optim import make_optimizer, needs_whole
from kd.training.parameter_groups import parameter_groups

SGD = {"_target_": "torch.optim.SGD", "lr": 0.5}


def rates_of(schedule: Any, steps: int, epochs: int) -> list[float]:
    """Return the rate of each step as a share of `lr`."""
    optimizer, rates = make_optimizer(
        nn.Linear(1, 1), steps, optim=SGD, schedule=schedule, epochs=epochs
    )
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        rates.step()
    return seen


@pytest.mark.parametrize(
    ("schedule", "falls"), [("step", [120, 180]), ("step_late", [150, 180, 210]), ("constant", [])]
)
def test_when_the_rate_falls_to_a_tenth(schedule: str, falls: list[int]) -> None:
    optimizer, rates = make_optimizer(
        nn.Linear(1, 1),
        240,
        optim={"_target_": "torch.optim.SGD", "lr": 0.05},
        schedule=schedule,
    )
    seen = []
    for _ in range(240):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rates.step()
    assert [n for n in range(1, 240) if seen[n] != seen[n - 1]] == falls
    assert seen[-1] == pytest.approx(0.05 * 0.1 ** len(falls))


def test_the_triangular_rate_rises_and_falls_in_lines() -> None:
    optimizer, rates = make_optimizer(
        nn.Linear(1, 1),
        1000,
        optim={"_target_": "torch.optim.SGD", "lr": 2.0, "momentum": 0.85},
        schedule="triangular",
    )
    seen = []
    for _ in range(1000):
        seen.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[0]["momentum"] == 0.85
        optimizer.step()
        rates.step()
    points = np.interp(range(1000), [0, 229, 999], [0.4, 2.0, 0.14])
    np.testing.assert_allclose(seen, points, atol=1e-9)


def test_a_warm_up_then_a_cosine() -> None:
    """Ten epochs of 20 steps: a linear rise over two, then a fall to a tenth."""
    given = {"schedule": "warmup_cosine", "warmup": 2, "end": 0.1}
    rises = [(step + 1) / 40 for step in range(40)]
    falls = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 160)) / 2 for k in range(160)]
    np.testing.assert_allclose(rates_of(given, 200, 10), rises + falls, atol=1e-9)


def test_a_warm_up_of_a_twentieth_by_itself() -> None:
    config = check(composed("lr_schedule=warmup_cosine"))
    seen = rates_of(config.lr_schedule, 200, 10)
    assert seen.index(max(seen)) == 200 / 20 - 1


def test_milestones_of_ones_own() -> None:
    """In epochs of 20 steps; each drop is to a fifth."""
    config = check(
        composed("lr_schedule={schedule: milestones, at: [3, 4.5], factor: 0.2, warmup: 1}")
    )
    expected = [(k + 1) / 20 for k in range(20)] + [1.0] * 40 + [0.2] * 30 + [0.04] * 110
    np.testing.assert_allclose(rates_of(config.lr_schedule, 200, 10), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "lr_schedule=cosin",
            r"lr_schedule: found 'cosin'; accepted is onecycle, .*did you mean 'cosine'\?",
        ),
        (
            "lr_schedule={schedule: cosine, warmup: 3}",
            r"lr_schedule\.warmup: cosine has no such number; it has none",
        ),
        (
            "lr_schedule={schedule: milestones}",
            r"lr_schedule\.at: found None; accepted is a list of epochs",
        ),
        (
            "lr_schedule={schedule: milestones, at: [3, 2]}",
            r"lr_schedule\.at: found \[3, 2\]; accepted",
        ),
        (
            "lr_schedule={schedule: milestones, at: [3], factor: 2}",
            r"lr_schedule\.factor: found 2;",
        ),
        ("lr_schedule={schedule: warmup_cosine, warmup: -1}", r"lr_schedule\.warmup: found -1;"),
        ("lr_schedule={schedule: warmup_cosine, end: 1}", r"lr_schedule\.end: found 1;"),
        (
            "lr_schedule={schedule: warmup_cosine, warmup: 40}",
            r"lr_schedule\.warmup: found 40 of 40 epochs",
        ),
        (
            "teacher.lr_schedule={schedule: milestones, at: [60, 120]}",
            r"teacher\.lr_schedule\.at: found 60, but training ends after 40 epochs",
        ),
        (
            "+stage.distill.lr_schedule={schedule: milestones, at: [50]}",
            r"stage\.distill\.lr_schedule\.at: found 50, but training ends after 40",
        ),
        ("ema=0.9 swa=0.5", r"swa: found 0\.5 beside ema=0\.9, which averages too"),
        ("label_smoothing=1.0", r"label_smoothing: found 1\.0; input should be less than 1"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(typed: str, said: str) -> None:
    words = typed.split(" ") if "{" not in typed else [typed]
    with pytest.raises(UserError, match=f"^{said}"):
        chain_of(check(composed(*words)))


def test_a_smoke_run_may_be_shorter_than_its_schedule() -> None:
    """It tries the recipe unchanged."""
    assert chain_of(
        check(composed("trainer=smoke", "lr_schedule={schedule: milestones, at: [30]}"))
    )
    assert rates_of({"schedule": "milestones", "at": [30], "factor": 0.1, "warmup": 5}, 2, 1)


def test_norms_and_biases_do_not_decay() -> None:
    """Default for our recipes; with constant gradients, decaying weights shrink by 1 - lr *
    decay.
    """
    config = check(composed("optim=adamw", "optim.weight_decay=0.5", "optim.lr=0.1"))
    net = CNN(10, 3, 4)
    before = copy.deepcopy(dict(net.named_parameters()))
    optimizer, _ = make_optimizer(net, 10, optim=config.optim, schedule="constant")
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        factor = 0.95 if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), factor * before[name].detach())
    groups = make_optimizer(
        net, 10, optim={**config.optim, "decay_norms": True}, schedule="constant"
    )[0].param_groups
    assert [len(group["params"]) for group in groups] == [len(before)]


@pytest.mark.slow
def test_the_protocol_of_a_paper_decays_all() -> None:
    config = check(composed("experiment=cifar100_crd_protocol"))
    assert config.optim["decay_norms"] is config.teacher.optim["decay_norms"] is True


class Layers(nn.Module):
    """With layer names of torchvision and timm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2)
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, 2, 4))
        self.fc = nn.Linear(4, 10)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}


def test_lower_layers_learn_more_slowly() -> None:
    """With 0.5: the head unchanged, the blocks below 1/2 and 1/4, first convolution and norm
    1/8.
    """
    net = Layers()
    optim = {"_target_": "torch.optim.AdamW", "lr": 0.8, "decay_norms": False, "layer_decay": 0.5}
    optimizer, rates = make_optimizer(
        net, 10, optim=optim, schedule="onecycle", extra=[nn.Parameter(torch.ones(2, 2))]
    )
    names = {p: name for name, p in net.named_parameters()}
    found = {
        names.get(p, "extra"): (group["max_lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    expected = {
        "pos_embed": 0.1,
        "conv1": 0.1,
        "bn1": 0.1,
        "blocks.0": 0.2,
        "blocks.1": 0.4,
        "fc": 0.8,
        "extra": 0.8,
    }
    for name, (lr, decay) in found.items():
        layer = next(each for each in expected if name.startswith(each))
        if layer != "pos_embed":
            assert lr == pytest.approx(expected[layer]), name
        one = name.endswith("bias") or "bn1" in name or ".1.weight" in name or layer == "pos_embed"
        assert decay == (0.0 if one else 0.01), name
    assert len(found) == len(names) + 1
    assert rates.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


def test_a_frozen_body_is_left_out() -> None:
    net = Layers()
    net.requires_grad_(False)
    net.fc.requires_grad_(True)
    (group,) = parameter_groups(net)
    assert [tuple(p.shape) for p in group["params"]] == [(10, 4), (10,)]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_muon_makes_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(*shape)
    values = torch.linalg.svdvals(nearest_orthogonal(matrix, 5))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    there = F.cosine_similarity(
        (u @ v).flatten(), nearest_orthogonal(matrix, 5).double().flatten(), 0
    )
    assert float(there) > 0.97


def test_a_step_of_muon() -> None:
    """For a convolution as its matrix [4, 27]; momentum by hand, direction by SVD."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 40, 3, bias=False), nn.Flatten(), nn.Linear(40, 2))
    conv, head = net[0].weight, net[2].weight
    before = conv.detach().clone()
    optimizer = Muon(
        [{"params": list(net.parameters())}], lr=0.1, momentum=0.9, weight_decay=0.5, outer=[head]
    )
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    grad = conv.grad.clone()
    optimizer.step()
    u, _, v = torch.linalg.svd(grad.flatten(1), full_matrices=False)
    # Nesterov's sum has the direction of the first gradient.
    moved = (before * (1 - 0.1 * 0.5) - conv.detach()).flatten(1)
    assert float(F.cosine_similarity(moved.flatten(), (u @ v).flatten(), 0)) > 0.97
    assert float(moved.norm()) == pytest.approx(0.1 * math.sqrt(40 / 27) * math.sqrt(27), rel=0.15)


def test_dot_keeps_a_momentum_each_for_labels_and_teacher() -> None:
    """Three steps of a number that both move, and of one that the labels alone move."""
    both, alone = (nn.Parameter(torch.tensor([start], dtype=torch.float64)) for start in (2.0, 3.0))
    optimizer = DOT([both, alone], lr=0.1, momentum=0.8, delta=0.15, weight_decay=0.5)
    p, q, of_labels, of_teacher, single = 2.0, 3.0, 0.0, 0.0, 0.0
    for labels, teacher in ((1.0, -4.0), (0.5, 2.0), (-2.0, 1.0)):
        both.grad = torch.tensor([labels + teacher], dtype=torch.float64)
        alone.grad = torch.tensor([labels], dtype=torch.float64)
        for part in (0.25, 0.75):  # as with accumulated batches
            optimizer.add_teacher({both: torch.tensor([part * teacher], dtype=torch.float64)})
        optimizer.step()
        of_labels = (0.8 - 0.15) * of_labels + labels + 0.5 * p
        of_teacher = (0.8 + 0.15) * of_teacher + teacher
        single = 0.8 * single + labels + 0.5 * q
        p, q = p - 0.1 * (of_labels + of_teacher), q - 0.1 * single
        assert both.item() == pytest.approx(p, rel=1e-14)
        assert alone.item() == pytest.approx(q, rel=1e-14)


@pytest.mark.parametrize("ce_weight", [0.25, 0.0])
def test_the_teachers_gradient_is_that_of_the_terms(ce_weight: float) -> None:
    """For two batches that count as one; without labels there is nothing to keep apart."""
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    loss = {"_target_": "kd.losses.mse_logits.mse_logits_loss"}
    node = {"ce_weight": ce_weight, "terms": {"mse": {"weight": 3.0, "loss": loss}}}
    objective = Objective(read_loss(node), Shape(1, 2, 3))
    module = create_autospec(Distiller, net=net, objective=objective)
    optimizer = DOT(net.parameters())
    strategy = SimpleNamespace(reduce=lambda gradient, reduce_op: gradient)
    trainer: Any = SimpleNamespace(
        optimizers=[optimizer], accumulate_grad_batches=2, strategy=strategy
    )
    callback = TeacherGradients()
    callback.on_fit_start(trainer, module)
    expected = torch.zeros(3, 4)
    for _ in range(2):
        x, t = torch.randn(5, 4), torch.randn(5, 3)
        signals = {"logits_s": net(x), "logits_t": t, "target": torch.tensor([0, 1, 2, 0, 1])}
        parts = objective({**signals, "progress": 0.5})
        callback.on_before_backward(trainer, module, parts["loss"] / 2)
        error = net(x).detach() - t  # mean over images and classes of its square
        expected += 3.0 * 2 * error.T @ x / error.numel() / 2
    if ce_weight:
        torch.testing.assert_close(optimizer.of_teacher[net.weight], expected)
    else:
        assert not optimizer.of_teacher


@pytest.mark.parametrize(
    ("node", "needed"),
    [
        ("torch.optim.AdamW", False),
        ("torch.optim.SGD", False),
        ("torch.optim.Adafactor", True),
        ("kd.training.muon.Muon", True),
        ("lion", False),
        ("lamb", True),
        ("lars", True),  # with weight decay its rate goes by a layer's norm
        ("lookahead_lamb", True),
    ],
)
def test_an_optimiser_that_looks_at_whole_layers(node: str, needed: bool) -> None:
    of_timm = {"_target_": "kd.training.optim.timm_optimizer", "name": node, "weight_decay": 0.05}
    chosen = {"_target_": node} if "." in node else of_timm
    assert needs_whole({**chosen, "lr": 0.01, "decay_norms": False}) is needed


def test_what_does_not_go_with_two_gradients() -> None:
    (plan,) = (plan for plan in chain_of(check(composed("optim=dot"))) if plan.name == "distill")
    clipping = plan.recipe.model_copy(update={"gradient_clip": 1.0})
    refuse_beside_dot(plan.recipe, "bf16-mixed", {"strategy": "ddp"}, "")
    for recipe, precision, trainer, said in (
        (clipping, "32-true", {}, r"gradient_clip: found 1\.0; optim=dot needs .* with it: null"),
        (plan.recipe, "16-mixed", {}, "trainer.precision: found '16-mixed'; .*: bf16-mixed, "),
        (plan.recipe, "32-true", {"compile": True}, "trainer.compile: found True; .*: false"),
        (
            plan.recipe,
            "32-true",
            {"strategy": "fsdp"},
            "trainer.strategy: found 'fsdp'; .*_fork",
        ),
    ):
        with pytest.raises(UserError, match=f"^{said}"):
            refuse_beside_dot(recipe, precision, trainer, "")
        refuse_beside_dot(recipe.model_copy(update={"optim": SGD}), precision, trainer, "")


def test_a_run_with_dot_keeps_the_baseline_plain(
    make_config: Callable[..., Config],
) -> None:
    """The student alone depends on delta, as only it has a teacher."""
    found = []
    for delta in (0.0, 0.09):
        config = make_config("optim=dot", f"optim.delta={delta}", "epochs=1", "teacher.epochs=1")
        folder = run(config.model_copy(update={"name": f"by_{delta}"}), "a test")
        models = json.loads((folder / "report.json").read_text())["models"]
        store = folder.parents[1] / "store"
        found.append(
            {model["role"]: load_file(store / model["stage"] / WEIGHTS) for model in models}
        )
    still, apart = found
    for role, same in (("baseline", True), ("student", False)):
        pairs = zip(still[role].values(), apart[role].values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs) is same


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "timm", "sgd", "adam", "adamw", "dot"])
def test_optimisers_learn_and_go_on_from_a_checkpoint(name: str) -> None:
    """After loading a state dict the next step is bit-identical."""
    config = check(composed(f"optim={name}", "optim.lr=0.01"))
    torch.manual_seed(0)
    net, x, y = CNN(3, 1, 4), torch.randn(12, 1, 8, 8), torch.arange(12) % 3

    def loss(net: nn.Module) -> Tensor:
        return F.cross_entropy(net(x), y)

    def step(net: nn.Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()

    optimizer, _ = make_optimizer(net, 9, optim=config.optim, schedule="constant")
    start = float(loss(net).detach())
    for _ in range(5):
        step(net, optimizer)
    assert float(loss(net).detach()) < start
    other = copy.deepcopy(net)
    again, _ = make_optimizer(other, 9, optim=config.optim, schedule="constant")
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, by in ((net, optimizer), (other, again)):
        step(each, by)
    assert all(map(torch.equal, net.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        pytest.param(  # importing timm takes a second
            ("optim=timm", "optim.name=lyon"),
            r"optim: name: timm has no optimiser 'lyon'; did you mean 'lion'\?",
            marks=pytest.mark.slow,
        ),
        (
            ("optim=muon", "optim.momentum=1.0"),
            r"optim: momentum: found 1.0, accepted is a number from 0 to below 1",
        ),
        (("optim=dot", "optim.delta=0.2"), r"optim: delta: found 0.2, accepted is a number with"),
        (
            ("optim.layer_decay=1.5",),
            r"optim\.layer_decay: found 1.5, accepted is a number above 0, up to 1, or null",
        ),
        (("optim.decay_norms=3",), r"optim\.decay_norms: found 3, accepted are true, false"),
    ],
)
def test_what_an_optimiser_refuses(typed: tuple[str, ...], said: str) -> None:
    config = check(composed(*typed))
    with pytest.raises(UserError, match=f"^{said}"):
        make_optimizer(CNN(3, 1, 4), 9, optim=config.optim, schedule="constant")


class TestLabelSmoothing:
    """Return (1 - s) of the label and s / C for each class, in float64."""

    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0], [1.0, 1.0, -2.0]])

    def expected(self, soft: list[list[float]]) -> float:
        rows = []
        for logits, label in zip(self.logits.tolist(), soft, strict=True):
            total = math.log(sum(math.exp(each) for each in logits))
            smooth = [0.7 * share + 0.3 / 3 for share in label]
            rows.append(
                -sum(share * (each - total) for share, each in zip(smooth, logits, strict=True))
            )
        return sum(rows)

    def test_of_classes(self) -> None:
        found = label_loss(self.logits, torch.tensor([2, 1, 0]), label_smoothing=0.3)
        assert float(found) == pytest.approx(self.expected([[0, 0, 1], [0, 1, 0], [1, 0, 0]]) / 3)

    @pytest.mark.parametrize(
        "target", [torch.tensor([2, 1, -1]), torch.tensor([[0.0, 0, 1], [0, 1, 0], [0, 0, 0]])]
    )
    def test_an_image_without_a_label_counts_for_nothing(self, target: Tensor) -> None:
        logits = self.logits.clone().requires_grad_()
        label_loss(logits, target, label_smoothing=0.3).backward()
        assert not logits.grad[2].any()
        assert logits.grad[:2].any(1).all()

    def test_of_mixed_labels(self) -> None:
        soft = [[0.2, 0.0, 0.8], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
        found = label_loss(self.logits, torch.tensor(soft), label_smoothing=0.3)
        assert float(found) == pytest.approx(self.expected(soft) / 3)


class TestAveraged:
    """For the values 1, 2, 4, 8, ... after each step; by hand."""

    values = tuple(torch.tensor([2.0**k, 7.0]) for k in range(12))

    def found(self, averaged: WeightAverage) -> list[float]:
        average = self.values[0].clone()
        seen = [float(average[0])]
        for k, value in enumerate(self.values[1:], start=1):
            averaged._toward([average], [value], torch.tensor(k))
            seen.append(float(average[0]))
            assert float(average[1]) == 7.0  # what does not move stays, to the bit
        return seen

    def test_a_moving_average_warms_up(self) -> None:
        expected = [1.0]
        for k in range(1, 12):
            decay = min(0.6, (1 + k) / (10 + k))
            expected.append(decay * expected[-1] + (1 - decay) * 2.0**k)
        assert self.found(WeightAverage(ema=0.6)) == pytest.approx(expected)

    def test_all_alike_from_a_share_on(self) -> None:
        averaged = WeightAverage(swa=0.5)
        averaged.begin = 6  # of 12 steps
        expected = [2.0**k for k in range(6)]
        expected += [sum(2.0**i for i in range(6, k + 1)) / (k - 5) for k in range(6, 12)]
        assert self.found(averaged) == pytest.approx(expected)

    def test_counts_are_copied(self) -> None:
        count = torch.tensor(3)
        WeightAverage(ema=0.9)._toward([count], [torch.tensor(8)], 5)
        assert int(count) == 8
