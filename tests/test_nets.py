import pytest
import torch
import torchvision.models
from torch import nn

from kd.errors import UserError
from kd.nets.build import Shape, build_net
from kd.nets.cnn import CNN
from kd.nets.cnn_shallow import ShallowCNN
from kd.nets.mlp import MLP
from kd.nets.resnet import ResNet
from kd.nets.torchvision import torchvision_net


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("net", "params"),
    [
        (CNN(10), 93_898),
        (ShallowCNN(2, 3, 224), 100_474),
        (MLP(10, 1, 28, [128]), 784 * 128 + 128 + 128 * 10 + 10),
        (MLP(10, 1, 28, [64]), 784 * 64 + 64 + 64 * 10 + 10),
        (MLP(10, 1, 28, []), 7_850),
        (ResNet(1000, 18), 11_689_512),  # torchvision's published count
        (ResNet(1000, 34), 21_797_672),
        (ResNet(10, 18, image_size=32, width=32), 2_797_610),
    ],
)
def test_parameters(net: nn.Module, params: int) -> None:
    assert count(net) == params


@pytest.mark.parametrize("depth", [18, 34])
def test_resnet_is_torchvisions(depth: int) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7).eval()
    ours = ResNet(7, depth, image_size=224).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_resnet_stem_follows_the_image_size() -> None:
    small, large = ResNet(10, 18, image_size=64), ResNet(10, 18, image_size=65)
    assert small.conv1.kernel_size == (3, 3)
    assert isinstance(small.maxpool, nn.Identity)
    assert large.conv1.kernel_size == (7, 7)
    assert ResNet(10, 18, image_size=224, stem="small").conv1.kernel_size == (3, 3)
    assert ResNet(10, 18, image_size=32, stem="imagenet").conv1.kernel_size == (7, 7)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_torchvision_nets_take_gray_images(name: str) -> None:
    net = torchvision_net(name, num_classes=5, in_channels=1).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def build(target: str, **keywords: object) -> nn.Module:
    return build_net({"_target_": target, **keywords}, Shape(1, 8, 10), "student.net")


def test_build_does_not_move_batch_norm() -> None:
    net = build("kd.nets.resnet.ResNet", depth=18, width=4)
    assert net.training
    fresh = nn.BatchNorm2d(4)
    assert torch.equal(net.bn1.running_mean, fresh.running_mean)
    assert int(net.bn1.num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("target", "keywords", "words"),
    [
        ("kd.nets.cnn.CNN", {"wdth": 3}, ["student.net.wdth", "width"]),
        ("kd.nets.cnn.Cnn", {}, ["student.net._target_", "kd.nets.cnn.Cnn"]),
        ("kd.nets.nothing.Net", {}, ["kd.nets.nothing"]),
        ("kd.nets.resnet.ResNet", {}, ["student.net", "depth"]),
        ("kd.nets.resnet.ResNet", {"depth": 19}, ["depth", "19", "18, 34"]),
        ("kd.nets.resnet.ResNet", {"depth": 18, "stem": "big"}, ["stem", "big", "imagenet"]),
        ("torch.nn.Identity", {}, ["(2, 10)"]),
        ("torch.tensor", {"data": 1}, ["student.net._target_", "torch.tensor"]),
        ("torch.nn.init.calculate_gain", {"nonlinearity": "relu"}, ["not a torch.nn.Module"]),
        ("kd.nets.torchvision.torchvision_net", {"name": "resnet15"}, ["resnet15", "resnet18"]),
        ("kd.nets.torchvision.torchvision_net", {"name": "alexnet"}, ["cannot take 1x8x8 images"]),
    ],
)
def test_a_net_that_cannot_be_built_is_one_message(target: str, keywords: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build(target, **keywords)
    for word in words:
        assert word in str(error.value)
