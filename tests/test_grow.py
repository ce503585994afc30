"""A growing head keeps the old outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd.config.construct import construct
from kd.errors import UserError
from kd.nets.build import build_net
from kd.nets.grow import Grown, align
from kd.nets.mlp import MLP
from kd.shape import Shape

NODES: list[dict[str, Any]] = [
    {"_target_": "kd.nets.mlp.MLP", "hidden": [16]},
    {"_target_": "kd.nets.cnn.CNN", "width": 4},
    {"_target_": "kd.nets.resnet.ResNet", "depth": 18, "width": 4},
    # A convolution for its head
    {"_target_": "kd.nets.torchvision.torchvision_net", "name": "squeezenet1_1"},
]


def grown(node: dict[str, Any], *blocks: int, size: int = 32, **more: Any) -> Grown:
    whole = {"_target_": "kd.nets.grow.Grown", "net": node, "blocks": list(blocks), **more}
    net = build_net(whole, Shape(3, size, sum(blocks)), "student.net")
    assert isinstance(net, Grown)
    return net.eval()


@pytest.mark.parametrize(
    "node", NODES, ids=lambda node: node.get("name", node["_target_"].rpartition(".")[2])
)
def test_old_logits_are_bit_identical_after_growth(node: dict[str, Any]) -> None:
    torch.manual_seed(1)
    before = grown(node, 2, 3)
    torch.manual_seed(2)
    after = grown(node, 2, 3, 4)
    for batch in (1, 7, 64):
        x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            fresh = after(x)
            after.take_over(before.state_dict())
            said, old = after(x), before(x)
        assert said.shape == (batch, 9)
        assert torch.equal(said[:, :5], old)
        assert old.abs().sum() > 0
        if batch == 1:
            assert not torch.equal(fresh[:, :5], old)
    assert all(
        torch.equal(after.state_dict()[name], value) for name, value in before.state_dict().items()
    )


def test_new_rows_stay_fresh() -> None:
    before, after = grown(NODES[0], 2), grown(NODES[0], 2, 2)
    fresh = {
        name: value.clone() for name, value in after.state_dict().items() if ".layers.1." in name
    }
    after.take_over(before.state_dict())
    assert len(fresh) == 2
    assert all(torch.equal(after.state_dict()[name], value) for name, value in fresh.items())


def test_weights_of_another_net_are_refused() -> None:
    with pytest.raises(ValueError, match=r"missing: .*net\.hidden\.2"):
        grown({**NODES[0], "hidden": [16, 8]}, 2, 2).take_over(grown(NODES[0], 2).state_dict())
    with pytest.raises(ValueError, match=r"unexpected: .*layers\.1"):
        grown(NODES[0], 2).take_over(grown(NODES[0], 2, 2).state_dict())


def test_features_are_what_the_head_is_given() -> None:
    net, x = grown(NODES[0], 2, 3), torch.randn(4, 3, 32, 32)
    assert isinstance(net.net, MLP)
    features = net.features(x)
    assert torch.equal(features, net.net.hidden(x.flatten(1)))
    blocks = [features @ layer.weight.T + layer.bias for layer in net.head.layers]
    assert torch.allclose(net(x), torch.cat(blocks, 1), atol=1e-6)


def test_outputs_in_another_order() -> None:
    plain, turned = grown(NODES[0], 2, 3), grown(NODES[0], 2, 3, order=[4, 0, 1, 3, 2])
    turned.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(turned(x), plain(x)[:, [4, 0, 1, 3, 2]])


def test_alignment_makes_the_mean_norms_equal() -> None:
    head = grown(NODES[0], 2, 3, 4).head
    with torch.no_grad():
        head.layers[2].weight.mul_(7)
    before = [layer.weight.detach().clone() for layer in head.layers]
    biases = [layer.bias.clone() for layer in head.layers]
    old = torch.cat(before[:2]).double().pow(2).sum(1).sqrt().mean()
    new = before[2].double().pow(2).sum(1).sqrt().mean()
    assert align(head) == pytest.approx((old / new).item(), rel=1e-6)
    assert torch.equal(head.layers[0].weight, before[0])
    assert torch.equal(head.layers[1].weight, before[1])
    assert torch.allclose(head.layers[2].weight, before[2] * float(old / new), rtol=1e-6)
    assert all(
        torch.equal(layer.bias, bias) for layer, bias in zip(head.layers, biases, strict=True)
    )


class TwoHeads(nn.Module):
    """Net without a layer of one output per class at its end."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.wide = nn.Linear(4, 2 * num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x.flatten(1)[:, :4])[:, ::2]


def test_a_net_that_cannot_grow_is_refused() -> None:
    node = {
        "_target_": "kd.nets.grow.Grown",
        "net": {"_target_": f"{__name__}.TwoHeads"},
        "blocks": [2, 2],
    }
    with pytest.raises(UserError, match=r"student\.net: .*does not end in a layer with 2 outputs"):
        construct(node, "student.net", num_classes=4, in_channels=3, image_size=8)
    with pytest.raises(UserError, match="blocks: found"):
        construct(
            {**node, "blocks": [2, 1]}, "student.net", num_classes=4, in_channels=3, image_size=8
        )
