"""Convolutions with fewer multiplications say what plain ones say."""

import copy

import pytest
import torch
from torch import nn

from kd.nets.resnet import ResNet
from kd.teachers import winograd
from kd.teachers.frozen import Frozen
from kd.teachers.fused import Folded
from kd.teachers.winograd import Winograd, fits, quicker


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 4 - 1


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (7, 16), (15, 11)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_same_answers(
    size: tuple[int, int], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = nn.Conv2d(128, 130, 3, padding=1, bias=bias)
    x = images(5, 128, *size).to(memory_format=torch.channels_last)
    before = torch.get_rng_state()
    quick = Winograd(plain)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        exact = nn.functional.conv2d(
            x.double(),
            plain.weight.double(),
            None if plain.bias is None else plain.bias.double(),
            padding=1,
        )
        error = (quick(x) - exact).abs().max() / exact.abs().max()
        assert 0 < error < 3e-5
        assert not torch.equal(quick(x), plain(x))  # or it would have been the plain one
        assert quick(x).is_contiguous(memory_format=torch.channels_last)
        monkeypatch.setattr(winograd, "PART", 128 * 8)  # a part of the images at a time
        torch.testing.assert_close(quick(x), plain(x), rtol=1e-4, atol=1e-4)


def test_where_it_is_no_gain_it_is_the_plain_one() -> None:
    plain = nn.Conv2d(128, 128, 3, padding=1)
    quick = Winograd(plain)
    x = images(2, 128, 5, 5)  # four tiles for what is little more than one
    assert torch.equal(quick(x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = images(2, 128, 8, 8)
        assert torch.equal(quick(x), plain(x))


class Other(nn.Conv2d):
    """A convolution that does something else with its weights."""


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(128, 128, 5, padding=2),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=1, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(128, 128, 3, padding=1, dtype=torch.float64),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.Conv2d(128, 64, 3, padding=1),
        nn.ConvTranspose2d(128, 128, 3, padding=1),
        Other(128, 128, 3, padding=1),
        nn.Linear(128, 128),
    ],
)
def test_what_it_does_not_fit_stays(module: nn.Module) -> None:
    assert not fits(module)
    net = nn.Sequential(
        module, nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding="same")
    )
    quicker(net)
    assert [isinstance(each, Winograd) for each in net] == [False, True, True]


def test_a_teacher_answers_with_it() -> None:
    torch.manual_seed(0)
    net = ResNet(5, 18, width=32, image_size=32).eval()
    plain = Frozen(net, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    folded = Folded(lambda: Frozen(net, plain.mean, plain.std))
    x = images(4, 3, 32, 32)
    before = copy.deepcopy(net.state_dict())
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-4, atol=1e-5)
    assert sum(isinstance(module, Winograd) for module in folded.frozen.net.modules()) == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(folded(x), folded(x))
    # An image's answers do not depend on those beside it.
    torch.testing.assert_close(folded(x)[2:3], folded(x.roll(1, 0))[3:4], rtol=0, atol=0)
