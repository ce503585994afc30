"""Your own loss, net and data set: one Python and one YAML file each, without edits to the
project.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from processes import Process

from kd.config.construct import construct
from kd.errors import UserError

LOSS = '''
import torch


def huber_loss(logits_s, logits_t, delta=1.0):
    """Huber distance between centred logits [B, C]."""
    centre = lambda z: z - z.mean(1, keepdim=True)
    return torch.nn.functional.huber_loss(centre(logits_s), centre(logits_t), delta=delta)
'''
NET = '''
from torch import nn


class Linear(nn.Module):
    """One linear layer, x [B, C, H, W] -> logits [B, num_classes]."""

    def __init__(self, num_classes, in_channels, image_size, bias=True):
        super().__init__()
        self.fc = nn.Linear(in_channels * image_size**2, num_classes, bias=bias)

    def forward(self, x):
        return self.fc(x.flatten(1))
'''
DATA = '''
import torch

from kd.data.base import DataModule, Images, Source


class Stripes(DataModule):
    """Horizontal or vertical stripes with noise: gray, 12x12."""

    def __init__(self, noise=40, **options):
        super().__init__(**options)
        self.noise = noise

    def read(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(400) % 2
        base = (torch.arange(12) % 4 // 2 * 120).expand(12, 12)
        pixels = torch.stack([base if label else base.T for label in labels])[:, None]
        pixels = pixels + torch.randint(0, self.noise, pixels.shape, generator=generator)
        return Source(Images(pixels.to(torch.uint8), labels), None, ("across", "down"))
'''
YAML = {
    "loss/huber.yaml": """
ce_weight: ${one_minus:${alpha}}
terms:
  huber: {weight: "${alpha}", loss: {_target_: mine.huber.huber_loss, delta: 0.5}}
""",
    "student/linear.yaml": "net: {_target_: mine.linear.Linear, bias: false}\n",
    "data/stripes.yaml": """
defaults: [/base/data@_here_]
_target_: mine.stripes.Stripes
noise: 60
""",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    code = tmp_path / "src" / "mine"
    code.mkdir(parents=True)
    for name, text in {"__init__": "", "huber": LOSS, "linear": NET, "stripes": DATA}.items():
        (code / f"{name}.py").write_text(text)
    for name, text in YAML.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def train(package: Path, *overrides: str) -> Process:
    environment = {"PYTHONPATH": str(package / "src"), "HOME": str(package), "PATH": ""}
    line = ("--config-dir", str(package / "conf"), *overrides)
    return Process("kd.train", *line, cwd=package, environment=environment).wait()


class Base:
    def __init__(self, root: str = "data", limit: int | None = None) -> None:
        self.given = (root, limit)


class Child(Base):
    def __init__(self, noise: int = 1, **options: Any) -> None:
        super().__init__(**options)


def test_keywords_that_are_handed_on_are_those_of_the_base() -> None:
    node = {"_target_": "test_extend.Child", "limit": 3}
    assert construct(node, "data", root="here", other=1).given == ("here", 3)
    with pytest.raises(
        UserError, match=r"data\.nois: no such parameter; accepted are .*did you mean 'noise'"
    ):
        construct({**node, "nois": 2}, "data")


@pytest.mark.slow
def test_own_loss_net_and_data(package: Path) -> None:
    done = train(
        package, "loss=huber", "student=linear", "data=stripes", "teacher=mlp", "epochs=3",
        "teacher.epochs=3",
        "batch_size=32", "teacher.batch_size=32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (package / "outputs" / "runs").iterdir()
    report = json.loads((folder / "report.json").read_text())
    assert report["data"]["classes"] == ["across", "down"]
    assert [model["net"] for model in report["models"]] == [
        "MLP",
        "Linear(bias=False)",
        "Linear(bias=False)",
    ]
    assert report["models"][2]["params"] == 2 * 144
    assert report["models"][0]["test"]["accuracy"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("loss.terms.huber.loss.delt=2", "delta"),
        ("student.net.bia=true", "bias"),
        ("data.nois=3", "noise"),
    ],
)
def test_own_parameters_are_checked_too(package: Path, override: str, word: str) -> None:
    failed = train(
        package, "loss=huber", "student=linear", "data=stripes", "teacher=mlp", f"+{override}"
    )
    assert failed.returncode == 2
    assert override.partition("=")[0] in failed.stderr
    assert word in failed.stderr
    assert "Traceback" not in failed.stderr
