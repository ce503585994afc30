"""Grad-CAM: maps from formulas, and pictures in a run's report."""

from pathlib import Path

import pytest
import torch
from composed import composed
from torch import Tensor, nn

from kd.config.schema import check
from kd.measure.grad_cam import grad_cam, last_maps
from kd.nets.cnn import CNN
from kd.nets.mlp import MLP
from kd.nets.resnet import ResNet
from kd.nets.speednet import SpeedNet
from kd.reports.figures import as_array
from kd.reports.grad_cam_figure import grad_cam_figure
from kd.runs.run import run
from kd.shape import Shape


class Pooled(nn.Module):
    """A convolution, global average pooling, a linear layer: gradients are known."""

    taps = ("conv",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
        self.fc = nn.Linear(3, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def test_a_map_is_the_weighted_sum_of_the_last_maps() -> None:
    torch.manual_seed(0)
    net, x, labels = Pooled(), torch.randn(5, 2, 6, 6), torch.tensor([0, 3, 1, 2, 3])
    found = grad_cam(net, x, labels, "conv")
    maps = net.conv(x).double()
    weights = net.fc.weight.double()[labels] / 36  # of a mean over 36 places
    wanted = (weights[:, :, None, None] * maps).sum(1).clamp(min=0)
    wanted = wanted / wanted.amax((1, 2), keepdim=True)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert x.grad is None
    assert not x.requires_grad


def test_the_map_is_bright_where_the_class_is() -> None:
    net = Pooled()
    with torch.no_grad():
        net.conv.weight.zero_()
        net.conv.bias.zero_()
        net.conv.weight[0, 0, 1, 1] = 1.0  # the first map is the first channel
        net.fc.weight.zero_()
        net.fc.weight[2, 0], net.fc.weight[1, 0] = 1.0, -1.0
    x = torch.zeros(2, 2, 8, 8)
    x[:, 0, 6, 1] = 5.0
    found = grad_cam(net, x, torch.tensor([2, 1]), "conv")
    assert found[0, 6, 1] == 1
    assert found[0].sum() == 1
    assert found[1].sum() == 0  # nothing speaks for that class


@pytest.mark.parametrize(
    ("net", "path"),
    [
        (ResNet(10, 18, image_size=32, width=4), "layer4"),
        (SpeedNet(10, widths=[4, 4, 4]), "block3"),
        (CNN(10, width=4), "features.relu4"),
        (MLP(10, 3, 32, [8]), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_last_maps_of_a_net(net: nn.Module, path: str | None) -> None:
    assert last_maps(net, Shape(3, 32, 10)) == path
    if path:
        found = grad_cam(net, torch.randn(2, 3, 32, 32), torch.tensor([1, 2]), path)
        assert found.shape == (2, 32, 32)
        assert 0 <= found.min() <= found.max() <= 1


def test_the_picture_has_a_row_an_image_with_what_each_net_chose() -> None:
    maps = {role: torch.rand(2, 8, 8) for role in ("teacher", "student")}
    sure = {
        "teacher": torch.tensor([[0.75, 0.25], [0.4, 0.6]]),
        "student": torch.tensor([[0.1, 0.9], [0.8, 0.2]]),
    }
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    figure = grad_cam_figure(pixels, [7, 4], torch.tensor([1, 0]), sure, maps, ["cat", "dog"])
    assert [axes.get_title() for axes in figure.axes] == [
        *("test image 7\ntrue: dog", "teacher\ncat, 75 %", "student\ndog, 90 %"),
        *("test image 4\ntrue: cat", "teacher\ndog, 60 %", "student\ncat, 80 %"),
    ]
    assert as_array(figure).shape[2] == 3


def test_a_run_of_convolutional_nets_shows_where_they_look(tmp_path: Path) -> None:
    small = ("data.limit=130", "epochs=1", "teacher.epochs=1", "pictures=true", "name=test")
    nets = ("teacher=resnet18", "teacher.net.width=4", "student=cnn", "student.net.width=4")
    folder = run(
        check(composed(*nets, *small, f"output_dir={tmp_path}", "stages=[teacher,distill]")), "x"
    )
    assert "Where teacher and student look" in (folder / "report.html").read_text()
