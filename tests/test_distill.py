"""Distillation from Python."""

import json
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

import kd
from kd.errors import UserError
from kd.nets.given import register

FAST = ("trainer.accelerator=cpu", "pictures=false", "batch_size=64")


class Digits(Dataset[tuple[Tensor, int]]):
    """Float pixels [1, 8, 8] in [0, 1]."""

    def __init__(self, count: int) -> None:
        digits = load_digits()
        self.pixels = torch.from_numpy(digits.images[:count] / 16).float()[:, None]
        self.labels = digits.target[:count].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.pixels[i], self.labels[i]


class Net(nn.Module):
    """Two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.slow
def test_two_lines_distil(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    teacher, student = Net(64), Net(16)
    before = [
        {name: t.clone() for name, t in net.state_dict().items()} for net in (teacher, student)
    ]
    done = kd.distill(
        teacher, student, Digits(600), epochs=2, output_dir=str(tmp_path), overrides=FAST
    )
    roles = {model["role"]: model for model in done.report["models"]}
    assert set(roles) == {"teacher", "baseline", "student"}
    assert roles["student"]["params"] == 64 * 16 + 16 + 16 * 10 + 10
    assert json.loads((done.folder / "report.json").read_text())["data"]["test"] == 120
    for net, was in zip((teacher, student), before, strict=True):
        assert all(torch.equal(t, was[name]) for name, t in net.state_dict().items())
    assert not torch.equal(done.student.layers[1].weight, student.layers[1].weight)  # type: ignore[index,union-attr]
    capfd.readouterr()
    again = kd.distill(
        teacher, student, Digits(600), epochs=2, output_dir=str(tmp_path), overrides=FAST
    )
    assert "distill: already there" in capfd.readouterr().err
    assert torch.equal(again.student.layers[1].weight, done.student.layers[1].weight)  # type: ignore[index,union-attr]


def test_a_nets_name_is_its_source_and_weights() -> None:
    net = Net(4)
    first = register(net, "student")["name"]
    assert register(net, "student")["name"] == first
    with torch.no_grad():
        net.layers[1].bias[0] += 1  # type: ignore[operator,index]
    assert register(net, "student")["name"] != first


def test_a_net_without_source_is_never_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, type[nn.Module]] = {}
    exec("from torch import nn\nclass Typed(nn.Linear): pass", scope)
    net = scope["Typed"](2, 2)  # type: ignore[call-arg]
    assert register(net, "student")["name"] != register(net, "student")["name"]
    assert "student: the source of Typed cannot be read" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "words"),
    [
        (
            torch.full((1, 8, 8), 1.5),
            r"train\[0\]: found pixels from 1.5 to 1.5, accepted are 0 to 1",
        ),
        ("text", r"train\[0\]: needed is a PIL image or pixels \[C, H, W\]; found str"),
    ],
)
def test_images_that_are_none(image: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        kd.distill(Net(4), Net(4), [(image, 0)] * 40, output_dir=str(tmp_path))  # type: ignore[arg-type]


def test_a_wrong_override_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss: there is no 'kdd'; accepted are .*kd"):
        kd.distill(Net(4), Net(4), Digits(40), loss="kdd", output_dir=str(tmp_path))
