"""A teacher with fused batch norms gives the same outputs."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from kd.nets.resnet import ResNet
from kd.teachers.frozen_teacher import FrozenTeacher
from kd.teachers.fused_teacher import FusedTeacher

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def moved(net: nn.Module) -> nn.Module:
    """Return the net with non-trivial batch-norm statistics."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


class Twice(nn.Module):
    """One convolution before two batch norms, which cannot both be fused into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = (
            nn.Conv2d(3, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.BatchNorm2d(3),
        )
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.conv(self.first(self.conv(x)))).mean((2, 3)))


class Wilful(Twice):
    """Net with data-dependent control flow, which cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


def has_norms(folded: FusedTeacher) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in folded.teacher.net.modules())


def test_answers_stay() -> None:
    net = moved(ResNet(5, 18, width=4, image_size=8))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    plain, folded = (
        FrozenTeacher(net, MEAN, STD),
        FusedTeacher(partial(FrozenTeacher, net, MEAN, STD)),
    )
    torch.testing.assert_close(folded(X), plain(X), rtol=1e-4, atol=1e-5)
    assert has_norms(FusedTeacher(partial(FrozenTeacher, net, MEAN, STD)))
    # An fx graph keeps modules that it no longer calls.
    assert not any(
        node.op == "call_module" and ".bn" in str(node.target)
        for node in folded.teacher.net.graph.nodes
    )
    assert not folded(X).requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_it_is_loaded_when_it_is_first_asked_and_draws_nothing() -> None:
    made = []

    def load() -> FrozenTeacher:
        made.append(FrozenTeacher(ResNet(5, 18, width=4, image_size=8), MEAN, STD))
        return made[-1]

    folded = FusedTeacher(load).to(torch.device("cpu"))
    assert not made
    before = torch.get_rng_state()
    assert torch.equal(folded(X), folded(X))
    assert len(made) == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("net", [Twice, Wilful])
def test_a_net_that_cannot_be_folded_answers_as_it_is(net: type[nn.Module]) -> None:
    made = moved(net())
    folded = FusedTeacher(partial(FrozenTeacher, made, MEAN, STD))
    assert torch.equal(folded(X), FrozenTeacher(made, MEAN, STD)(X))
    assert has_norms(folded)
