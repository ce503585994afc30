"""Ensembles: the averages by hand, a single member as itself, and members trained once."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import composed, tiny
from safetensors.torch import load_file

from kd.config.schema import check
from kd.data.views import normalize
from kd.errors import UserError
from kd.runs.run import run
from kd.stages.chain import chain_of
from kd.teachers.ensemble import Ensemble
from kd.teachers.frozen_teacher import FrozenTeacher

MLP: dict[str, Any] = {"_target_": "kd.nets.mlp.MLP", "hidden": [5]}
MEMBERS = (
    "teacher.members=[{seed: 0}, {seed: 1, net: {hidden: [12]}}, {net: {_target_: "
    "kd.nets.cnn.CNN}}]"
)


def ensemble(count: int, **options: Any) -> Ensemble:
    torch.manual_seed(0)
    made = Ensemble([MLP] * count, num_classes=3, in_channels=2, image_size=4, **options).eval()
    made.join(
        [member.state_dict() for member in made.members],
        [((0.1 * i, 0.2), (1.0, 2.0 + i)) for i in range(count)],
    )
    return made


def members_logits(net: Ensemble, x: torch.Tensor) -> list[list[list[float]]]:
    with torch.no_grad():
        return [
            member(normalize(x, (0.1 * i, 0.2), (1.0, 2.0 + i))).tolist()
            for i, member in enumerate(net.members)
        ]


X = torch.rand(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def softmax(z: list[float], t: float) -> list[float]:
    e = [math.exp(v / t) for v in z]
    return [v / sum(e) for v in e]


def test_mean_of_logits() -> None:
    net = ensemble(2, weights=[1, 3])
    a, b = members_logits(net, X)
    expected = [
        [0.25 * p + 0.75 * q for p, q in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(net(X), torch.tensor(expected))


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_mean_of_probabilities_at_a_temperature(t: float) -> None:
    net = ensemble(3, average="probabilities", temperature=t)
    each = [[softmax(z, t) for z in rows] for rows in members_logits(net, X)]
    expected = [[sum(p) / 3 for p in zip(*rows, strict=True)] for rows in zip(*each, strict=True)]
    torch.testing.assert_close((net(X) / t).softmax(1), torch.tensor(expected))


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_one_member_is_itself_bit_for_bit(average: Any) -> None:
    net = ensemble(1, average=average, temperature=4.0)
    alone = FrozenTeacher(net.members[0], (0.0, 0.2), (1.0, 2.0))
    assert torch.equal(FrozenTeacher(net, *net.normalization)(X), alone(X))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, 1.0, 1.0]])
def test_weights_that_do_not_fit(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="needed is a number above 0 for each of 2"):
        ensemble(2, weights=weights)


def test_state_dict_holds_the_normalisations() -> None:
    net, other = ensemble(2), Ensemble([MLP] * 2, num_classes=3, in_channels=2, image_size=4).eval()
    assert not torch.equal(net(X), other(X))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(X), other(X))


class TestChain:
    def test_members_are_stages_of_their_own(self) -> None:
        chain = chain_of(
            check(
                composed(
                    "teacher=ensemble", MEMBERS, "teacher.net=${student.net}", "teacher.epochs=7"
                )
            )
        )
        assert [plan.name for plan in chain] == [
            "teacher_1",
            "teacher_2",
            "teacher_3",
            "teacher",
            "baseline",
            "distill",
        ]
        assert [plan.role for plan in chain[:4]] == [None, None, None, "teacher"]
        assert [plan.recipe.seed for plan in chain[:3]] == [0, 1, 0]
        assert {plan.recipe.epochs for plan in chain[:3]} == {7}
        assert [plan.net["_target_"].rpartition(".")[2] for plan in chain[:3]] == [
            "MLP",
            "MLP",
            "CNN",
        ]
        assert chain[1].net["hidden"] == [12]
        assert chain[3].members == ("teacher_1", "teacher_2", "teacher_3")

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            (
                "teacher.members=[{sed: 1}]",
                r"teacher\.members\[0\]\.sed: no such key.*did you mean 'seed'",
            ),
            ("teacher.members=[{}, {epochs: -1}]", r"teacher\.members\[1\]\.epochs: found -1"),
            ("teacher.members=[]", r"teacher\.members: found \[\]"),
            ("teacher.weights=[1]", r"teacher\.weights: found \[1.0\]"),
            ("teacher.average=median", r"teacher\.average: found 'median'"),
        ],
    )
    def test_refused(self, override: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            chain_of(check(composed("teacher=ensemble", override)))

    @pytest.mark.slow
    def test_the_temperature_counts_for_probabilities_alone(self) -> None:
        def node(*overrides: str) -> dict[str, Any]:
            chain = chain_of(check(composed("teacher=ensemble", *overrides)))
            return next(plan.net for plan in chain if plan.name == "teacher")

        assert node("temperature=3") == node("temperature=5")
        assert node("temperature=3", "teacher.average=probabilities")["temperature"] == 3.0
        with pytest.raises(UserError, match=r"teacher\.average_temperature"):
            node("experiment=temperature_falls", "teacher.average=probabilities")


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.mark.slow
class TestRuns:
    NET = "teacher.net={_target_: kd.nets.mlp.MLP, hidden: [16]}"

    def test_of_one_is_the_single_teacher(self, tmp_path: Path) -> None:
        alone = run(check(tiny(tmp_path, "teacher.net.hidden=[16]")), "a test")
        one = run(
            check(
                tiny(
                    tmp_path,
                    "teacher=ensemble",
                    "~teacher.net",
                    f"+{self.NET}",
                    "teacher.members=[{}]",
                )
            ),
            "-",
        )
        a, b = (load_file(folder / "student.safetensors") for folder in (alone, one))
        assert report_of(alone)["models"][2]["stage"] != report_of(one)["models"][2]["stage"]
        assert all(torch.equal(a[k], b[k]) for k in a)

    def test_members_are_trained_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ("teacher=ensemble", "~teacher.net", f"+{self.NET}")
        first = run(
            check(tiny(tmp_path, *options, "teacher.members=[{seed: 0}, {seed: 1}]")), "a test"
        )
        said = capsys.readouterr().err
        # Two members, baseline, student; the ensemble has nothing to train
        assert said.count(": trained") == 4
        second = run(
            check(tiny(tmp_path, *options, "teacher.members=[{seed: 1}, {seed: 2}]")), "a test"
        )
        assert "teacher_1: already there" in capsys.readouterr().err
        keys = {report_of(folder)["models"][0]["stage"] for folder in (first, second)}
        assert len(keys) == 2, "of the same nets, but other ones"
        teacher = report_of(first)["models"][0]
        assert teacher["role"] == "teacher"
        assert teacher["net"].startswith("Ensemble of 2")
        assert teacher["params"] == 2 * (64 * 16 + 16 + 16 * 10 + 10)
