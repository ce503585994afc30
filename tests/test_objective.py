"""The objective: formula, numbers, refusals, and the parameters of losses that learn."""

import math
from typing import Any

import pytest
import torch
from composed import loss_node
from torch import Tensor, nn

from kd.errors import UserError
from kd.shape import Shape
from kd.training.loss_spec import read_loss
from kd.training.objective import Objective

SHAPE = Shape(1, 8, 4)
S = [[1.0, -0.5, 2.0, 0.3], [0.1, 0.7, -1.1, 0.4], [2.2, -0.2, 0.0, 1.3]]
T = [[2.0, 0.5, 1.0, -1.0], [0.3, 3.0, -2.0, 0.1], [1.0, 1.5, 0.2, 0.8]]
Y = [2, 1, 3]
KD = {"_target_": "kd.losses.kd.kd_loss"}


def signals(progress: float = 0.0, **others: Any) -> dict[str, Any]:
    given = {"logits_s": torch.tensor(S), "logits_t": torch.tensor(T), "target": torch.tensor(Y)}
    return {
        **given,
        "index": torch.arange(3),
        "x": torch.ones(3, 1, 8, 8),
        "epoch": 0,
        "progress": progress,
    } | others


def make(ce_weight: Any = 1.0, **terms: Any) -> Objective:
    return Objective(read_loss({"ce_weight": ce_weight, "terms": terms}), SHAPE)


def softmax(z: list[float], temperature: float = 1.0) -> list[float]:
    e = [math.exp(v / temperature) for v in z]
    return [v / sum(e) for v in e]


def ce() -> float:
    return sum(-math.log(softmax(z)[k]) for z, k in zip(S, Y, strict=True)) / 3


def kd(temperature: float) -> float:
    total = 0.0
    for a, b in zip(S, T, strict=True):
        pairs = zip(softmax(b, temperature), softmax(a, temperature), strict=True)
        total += sum(p * math.log(p / q) for p, q in pairs)
    return temperature**2 * total / 3


# Losses as a user might write them


def sees_progress(logits_s: Tensor, progress: float, epoch: int) -> Tensor:
    return logits_s.sum() * 0 + progress + 10 * epoch


def constant_loss(logits_s: Tensor, size: float) -> Tensor:
    return logits_s.sum() * 0 + size


def wants_more(logits_s: Tensor, feats: Tensor) -> Tensor:
    return logits_s.sum()


class Scaled(nn.Module):
    def __init__(self, num_classes: int, factor: float = 2.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((num_classes,), factor))

    def forward(self, logits_s: Tensor, power: float = 1.0) -> Tensor:
        self.logged = {"scale": self.scale.detach().mean()}
        return (self.scale * logits_s).abs().pow(power).mean()


class TestFormula:
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_alpha_is_the_weight_of_the_teachers_side(
        self, alpha: float, temperature: float
    ) -> None:
        node = loss_node("kd", f"alpha={alpha}", f"temperature={temperature}")
        found = Objective(read_loss(node), SHAPE)(signals())["loss"].item()
        assert found == pytest.approx((1 - alpha) * ce() + alpha * kd(temperature), rel=1e-5)

    def test_form_is_the_same_where_a_weight_is_zero(self) -> None:
        """The term's value keeps its T^2 and its place in the log while its weight goes to 0."""
        parts = make(0.5, kd={"weight": 0.0, "loss": {**KD, "temperature": 4.0}})(signals())
        assert parts["loss"].item() == pytest.approx(0.5 * ce(), rel=1e-5)
        assert parts["loss_kd"].item() == pytest.approx(kd(4.0), rel=1e-5)

    def test_terms_add_up(self) -> None:
        terms = {
            name: {"weight": w, "loss": {**KD, "temperature": t}}
            for name, w, t in (("a", 2, 1.0), ("b", 3, 4.0))
        }
        found = make(0.5, **terms)(signals())["loss"].item()
        assert found == pytest.approx(0.5 * ce() + 2 * kd(1.0) + 3 * kd(4.0), rel=1e-5)

    @pytest.mark.slow
    def test_mixture_of_two_methods_has_the_terms_of_both(self) -> None:
        node = loss_node("kd_dist", "temperature=4.0", "alpha=0.9")
        assert set(node["terms"]) == {"kd", "dist"}
        both = Objective(read_loss(node), SHAPE)(signals())
        single = Objective(read_loss(loss_node("dist", "temperature=4.0")), SHAPE)(signals())
        expected = 0.1 * ce() + 0.9 * kd(4.0) + single["loss_dist"].item()
        assert both["loss"].item() == pytest.approx(expected, rel=1e-5)

    def test_soft_labels_in_the_cross_entropy(self) -> None:
        label = torch.nn.functional.one_hot(torch.tensor(Y), 4).float()
        flat = sum(-math.log(p) for z in S for p in softmax(z)) / 4 / 3
        found = make()(signals(target=0.8 * label + 0.2 / 4))["loss"].item()
        assert found == pytest.approx(0.8 * ce() + 0.2 * flat, rel=1e-5)

    def test_without_terms_it_is_the_cross_entropy_alone(self) -> None:
        objective = Objective(read_loss({"terms": {}}), SHAPE)
        assert not objective.needs_teacher
        assert objective(signals())["loss"].item() == pytest.approx(ce(), rel=1e-5)
        with pytest.raises(UserError, match=r"loss: it is empty; needed are terms"):
            read_loss({})


class TestNumbers:
    def test_all_may_be_scheduled_and_are_logged(self) -> None:
        rise = {"schedule": "linear", "start": 0.0, "end": 1.0}
        fall = {"schedule": "linear", "start": 8.0, "end": 2.0}
        objective = make(
            {"schedule": "one_minus", "of": rise},
            kd={"weight": rise, "loss": {**KD, "temperature": fall}},
        )
        for progress in (0.0, 0.25, 1.0):
            parts = objective(signals(progress))
            temperature = 8 - 6 * progress
            assert parts["weight_ce"] == pytest.approx(1 - progress)
            assert parts["weight_kd"] == pytest.approx(progress)
            assert parts["kd_temperature"] == pytest.approx(temperature)
            expected = (1 - progress) * ce() + progress * kd(temperature)
            assert parts["loss"].item() == pytest.approx(expected, rel=1e-5)
            assert set(parts) == {
                "loss",
                "loss_ce",
                "weight_ce",
                "loss_kd",
                "weight_kd",
                "kd_temperature",
            }

    def test_a_loss_may_ask_for_the_progress_itself(self) -> None:
        objective = make(0.0, own={"loss": {"_target_": "test_objective.sees_progress"}})
        assert objective(signals(0.25, epoch=2))["loss"].item() == 20.25

    def test_dkd_warms_up(self) -> None:
        objective = Objective(read_loss(loss_node("dkd")), SHAPE)
        weights = [objective(signals(p))["weight_dkd"] for p in (0.0, 10 / 240, 20 / 240, 1.0)]
        assert weights == pytest.approx([0, 0.5, 1, 1], abs=0.01)


class TestRefusals:
    @pytest.mark.parametrize(
        ("node", "message"),
        [
            (
                {"ce_wieght": 1},
                "loss.ce_wieght: no such key; accepted are ce_weight, terms, teacher, net, strong; "
                "did you mean",
            ),
            ({"ce_weight": -1}, "loss.ce_weight: found -1, accepted is a number from 0"),
            ({"ce_weight": "1"}, "loss.ce_weight: found '1'"),
            ({"teacher": "nobody"}, "loss.teacher: found 'nobody', accepted are teacher, baseline"),
            (
                {"terms": {"ce": {"loss": KD}}},
                "loss.terms.ce: that name is the cross-entropy's own",
            ),
            (
                {"terms": {"kd": {"wieght": 1, "loss": KD}}},
                "loss.terms.kd.wieght: no such key; accepted are weight, loss",
            ),
            ({"terms": {"kd": {"weight": -0.1, "loss": KD}}}, "loss.terms.kd.weight: found -0.1"),
            (
                {
                    "terms": {
                        "kd": {"weight": {"schedule": "linear", "start": 1, "end": -1}, "loss": KD}
                    }
                },
                "loss.terms.kd.weight: it is .* at progress",
            ),
            ({"terms": {"kd": {"weight": 1}}}, "loss.terms.kd.loss: needs a `_target_`"),
            (
                {"terms": {"kd": {"loss": {**KD, "temprature": 2}}}},
                "kd.loss.temprature: no such parameter; accepted are temperature, "
                "standardize; did you mean 'temp",
            ),
            (
                {"terms": {"kd": {"loss": {**KD, "logits_s": 2}}}},
                "kd.loss.logits_s: no such parameter",
            ),
            (
                {"terms": {"kd": {"loss": {**KD, "temperature": 0}}}},
                "kd.loss.temperature: found 0, accepted",
            ),
            (
                {"terms": {"own": {"loss": {"_target_": "test_objective.wants_more"}}}},
                "asks for 'feats', which is neither set nor among what training provides: "
                "logits_s, logits_t",
            ),
            (
                {"terms": {"own": {"loss": {"_target_": "test_objective.constant_loss"}}}},
                "asks for 'size'",
            ),
            (
                {"terms": {"own": {"loss": {"_target_": "test_objective.Scaled", "facter": 1}}}},
                "own.loss.facter: no such parameter; accepted are factor, power; did you "
                "mean 'factor'",
            ),
            (
                {
                    "terms": {
                        "own": {
                            "loss": {
                                "_target_": "test_objective.Scaled",
                                "factor": {"schedule": "warmup", "end": 1},
                            }
                        }
                    }
                },
                "own.loss.factor: is set once, when the loss is built, so it cannot be a schedule",
            ),
            (
                {"terms": {"c": {"loss": {"_target_": "kd.losses.ctkd.CTKD", "low": -1.0}}}},
                "c.loss: low and span must",
            ),
            (
                {"terms": {"kd": {"loss": {"_target_": "kd.losses.kd.kd_los"}}}},
                "loss._target_: cannot import",
            ),
        ],
    )
    def test_at_construction(self, node: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            Objective(read_loss(node), SHAPE)


class TestLossesThatLearn:
    def test_own_parameters_and_state(self) -> None:
        loss = {
            "_target_": "test_objective.Scaled",
            "factor": 3.0,
            "power": {"schedule": "linear", "start": 1, "end": 2},
        }
        objective = make(0.0, own={"loss": loss})
        (scale,) = objective.parameters()
        assert scale.tolist() == [3.0] * 4  # num_classes comes from the data
        assert "terms.0.loss.scale" in objective.state_dict()
        size = [[3 * abs(v) for v in row] for row in S]
        for progress, power in ((0.0, 1.0), (1.0, 2.0)):
            parts = objective(signals(progress))
            assert parts["loss"].item() == pytest.approx(
                sum(v**power for row in size for v in row) / 12, rel=1e-5
            )
            assert (parts["own_power"], parts["own_scale"]) == (power, 3.0)

    def test_ctkd_temperature_climbs(self) -> None:
        """The student descends the loss, the temperature ascends it."""
        objective = Objective(read_loss(loss_node("ctkd")), SHAPE)
        (theta,) = objective.parameters()
        slopes = []
        for progress in (0.0, 1.0):
            theta.grad = None
            parts = objective(signals(progress))
            parts["loss"].backward()
            slopes.append(theta.grad.item())
        assert slopes[0] == 0
        low, high = (kd(parts["ctkd_temperature"].item() + d) for d in (-1e-3, 1e-3))
        assert slopes[1] * (high - low) < 0
        assert parts["ctkd_temperature"].item() == pytest.approx(
            1 + 20 / (1 + math.exp(-1)), rel=1e-6
        )

    def test_dml_owns_a_peer_and_needs_no_teacher(self) -> None:
        objective = Objective(read_loss(loss_node("dml")), SHAPE)
        assert not objective.needs_teacher
        assert {name.split(".")[3] for name, _ in objective.named_parameters()} == {"peer"}
        assert objective(signals())["dml_peer_acc"] in [pytest.approx(i / 3) for i in range(4)]


@pytest.mark.parametrize(
    ("method", "stage"),
    [("kd", "teacher"), ("kd_dist", "teacher"), ("ctkd", "teacher"), ("tfkd_self", "baseline")]
    + [(method, None) for method in ("tfkd_reg", "label_smoothing", "dml")],
)
def test_who_teaches(method: str, stage: str | None) -> None:
    assert read_loss(loss_node(method)).teacher == stage
