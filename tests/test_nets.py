import copy
import functools
import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torchvision.models
from composed import CONF, composed
from torch import nn

from kd.config.schema import check
from kd.errors import UserError
from kd.measure.costs import count_macs
from kd.nets.build import build_net
from kd.nets.cnn import CNN
from kd.nets.cnn_pooled import PooledCNN
from kd.nets.cnn_shallow import ShallowCNN
from kd.nets.mlp import MLP
from kd.nets.mobilenet_v2 import MobileNetV2
from kd.nets.resnet import ResNet
from kd.nets.resnet8_mlperf_tiny import ResNet8MLPerfTiny, SameConv
from kd.nets.resnet_cifar import PaddedShortcut, ResNetCIFAR
from kd.nets.shufflenet_v1 import ChannelShuffle, ShuffleNetV1
from kd.nets.shufflenet_v2 import ShuffleNetV2
from kd.nets.speednet import Shift, SpeedNet
from kd.nets.torchvision import torchvision_net
from kd.nets.vgg import VGG
from kd.nets.wide_resnet import PreActivationBlock, WideResNet
from kd.shape import Shape


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("net", [PooledCNN(10), SpeedNet(10, image_size=32)])
def test_global_max_pooling_is_a_layer_that_every_exporter_has(net: nn.Module) -> None:
    """LiteRT's converter has no adaptive max pooling; the gradient goes to one of equal values."""
    assert not any(isinstance(each, nn.AdaptiveMaxPool2d) for each in net.modules())
    channels = net.get_submodule("fc").in_features
    assert isinstance(channels, int)
    maps = torch.zeros(2, channels, 4, 4)  # all are equal
    maps[0, :, 1, 2] = 3.0
    last = net.taps[-1]  # type: ignore[index]
    net.get_submodule(last).register_forward_hook(lambda *_: maps.requires_grad_())
    seen: list[torch.Tensor] = []
    net.get_submodule("fc").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net.eval()(torch.rand(2, 3, 32, 32))
    (seen[0] / getattr(net, "scale", 1.0)).sum().backward()
    assert (seen[0] / getattr(net, "scale", 1.0)).allclose(torch.tensor([[3.0], [0.0]]))
    assert maps.grad is not None
    assert maps.grad.sum((2, 3)).allclose(torch.ones(2, channels))
    assert (maps.grad != 0).sum((2, 3)).eq(1).all()


@pytest.mark.parametrize(
    ("make", "params"),
    [
        (lambda: CNN(10), 9 * (3 * 32 + 32 * 64 + 2 * 64 * 64) + 2 * (32 + 3 * 64) + 64 * 10 + 10),
        (
            lambda: CNN(10, batch_norm=False),
            9 * (3 * 32 + 32 * 64 + 2 * 64 * 64) + 32 + 3 * 64 + 64 * 10 + 10,
        ),
        (lambda: ShallowCNN(2, 3, 224), 100_474),
        (lambda: MLP(10, 1, 28, [128]), 784 * 128 + 128 + 128 * 10 + 10),
        (lambda: MLP(10, 1, 28, [64]), 784 * 64 + 64 + 64 * 10 + 10),
        (lambda: MLP(10, 1, 28, []), 7_850),
        (lambda: ResNet(1000, 18), 11_689_512),  # torchvision's published count
        (lambda: ResNet(1000, 34), 21_797_672),
        (lambda: ResNet(10, 18, image_size=32, width=32), 2_797_610),
        # The counts that papers on distillation give (Tian et al. 2020, Zhao et al. 2022),
        # CIFAR-100.
        (lambda: ResNetCIFAR(100, 20), 278_324),
        (lambda: ResNetCIFAR(100, 56), 861_620),
        (lambda: ResNetCIFAR(100, 8, widths=[32, 64, 128, 256]), 1_233_540),
        (lambda: ResNetCIFAR(100, 32, widths=[32, 64, 128, 256]), 7_433_860),
        # Without parameters in the shortcuts (He et al. 2015: 0.27, 0.46, 0.85 M), CIFAR-10.
        (lambda: ResNetCIFAR(10, 20, shortcut="A"), 269_722),
        (lambda: ResNetCIFAR(10, 32, shortcut="A"), 464_154),
        (lambda: ResNetCIFAR(10, 56, shortcut="A"), 853_018),
        (lambda: ResNetCIFAR(100, 32), 472_756),
        (lambda: ResNetCIFAR(100, 110), 1_736_564),
        (lambda: ResNet(100, 50, image_size=32), 23_705_252),
        (lambda: MobileNetV2(100), 812_836),
        (lambda: ShuffleNetV1(100), 949_258),
        (lambda: ShuffleNetV2(100), 1_355_528),
        (lambda: WideResNet(100, 40, 1), 569_780),
        (lambda: WideResNet(100, 16, 2), 703_284),
        (lambda: WideResNet(100, 40, 2), 2_255_156),
        (lambda: VGG(100, 8), 3_965_028),
        (lambda: VGG(100, 13), 9_462_180),
        (
            lambda: PooledCNN(10),
            9 * (3 * 16 + 16 * 24 + 24**2 + 24 * 48 + 48**2 + 48 * 64 + 64**2)
            + 2 * (16 + 2 * (24 + 48 + 64))
            + 64 * 10,
        ),
        (
            lambda: SpeedNet(10),
            12 * 24
            + 24
            + 9 * (24 * 64 + 64**2 + 64 * 256 + 256**2 + 2 * 256**2)
            + 2 * (64 + 256 + 256)
            + 256 * 10,
        ),
    ],
)
def test_parameters(make: Callable[[], nn.Module], params: int) -> None:
    assert count(make()) == params


@pytest.mark.parametrize(
    ("pools", "sizes"), [((1, 2), (16, 8, 8)), ((2,), (32, 16, 16)), ((), (32, 32, 32))]
)
def test_cnn_halves_its_maps_where_it_is_told(
    pools: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    net = CNN(10, width=2, pools=pools)
    seen = []
    for number in (2, 3, 4):
        conv = net.get_submodule(f"features.conv{number}")
        conv.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert tuple(seen) == sizes


@pytest.mark.parametrize("pools", [(0,), (5,), (1, 1)])
def test_cnn_refuses_other_pools(pools: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pools: found"):
        CNN(10, pools=pools)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnet_is_torchvisions(depth: int) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7).eval()
    ours = ResNet(7, depth, image_size=224).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.slow
def test_resnet_stem_follows_the_image_size() -> None:
    small, large = ResNet(10, 18, image_size=63), ResNet(10, 18, image_size=64)
    assert small.conv1.kernel_size == (3, 3)
    assert isinstance(small.maxpool, nn.Identity)
    assert large.conv1.kernel_size == (7, 7)
    assert ResNet(10, 18, image_size=224, stem="small").conv1.kernel_size == (3, 3)
    assert ResNet(10, 18, image_size=32, stem="imagenet").conv1.kernel_size == (7, 7)


@pytest.mark.parametrize(
    ("net", "taps"),
    [
        (ResNetCIFAR(10, 14), [(16, 32), (32, 16), (64, 8)]),
        (WideResNet(10, 16, 2), [(32, 32), (64, 16), (128, 8)]),
        (PooledCNN(10), [(24, 16), (48, 8), (64, 4)]),
        (SpeedNet(10, widths=[8, 12, 16]), [(8, 15), (12, 7), (16, 3)]),
        (VGG(10, 8, width=16), [(32, 16), (64, 8), (128, 4), (128, 4)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_groups_of_papers_nets_have_their_widths_and_sizes(
    net: nn.Module, taps: list[tuple[int, int]]
) -> None:
    seen = []
    for name in net.taps:
        net.get_submodule(name).register_forward_hook(
            lambda _m, _i, out: seen.append((out.shape[1], out.shape[2]))
        )
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert seen == taps


def test_mlperf_tinys_resnet_has_its_numbers_and_multiplications() -> None:
    net = ResNet8MLPerfTiny(10)
    moving = sum(
        len(tensor) for name, tensor in net.state_dict().items() if name.endswith(("_mean", "_var"))
    )
    assert count(net) + moving == 78_666  # as Keras counts, and the paper
    groups = ((32, 3, 16), (32, 16, 16), (32, 16, 16), (16, 16, 32), (16, 32, 32), (8, 32, 64))
    macs = sum(9 * side**2 * a * b for side, a, b in (*groups, (8, 64, 64)))
    macs += 16**2 * 16 * 32 + 8**2 * 32 * 64 + 64 * 10  # the shortcuts, the last layer
    assert count_macs(net, Shape(3, 32, 10)) == macs == 12_501_632


@pytest.mark.parametrize(
    ("side", "stride", "rows"), [(4, 2, [1, 3]), (5, 2, [0, 2, 4]), (4, 1, [0, 1, 2, 3])]
)
def test_padding_is_kerass(side: int, stride: int, rows: list[int]) -> None:
    """With an even side and stride 2 the padding of one comes last: the kernel is centred on rows
    1, 3.
    """
    conv = SameConv(1, 1, 3, stride=stride, bias=False)
    nn.init.zeros_(conv.weight).data[0, 0, 1, 1] = 1
    x = torch.arange(float(side * side)).view(1, 1, side, side)
    assert torch.equal(conv(x), x[:, :, rows][..., rows])


def test_a_shuffle_deals_the_groups_out() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert ChannelShuffle(3)(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (
            MobileNetV2(10),
            {
                "conv1.0.weight": (16, 3, 3, 3),
                "blocks.0.0.conv.0.weight": (16, 16, 1, 1),
                "blocks.3.3.conv.3.weight": (192, 1, 3, 3),
                "blocks.6.0.conv.7.running_var": (160,),
                "conv2.0.weight": (1280, 160, 1, 1),
                "classifier.0.weight": (10, 1280),
            },
        ),
        (
            ShuffleNetV1(10),
            {
                "conv1.weight": (24, 3, 1, 1),
                "layer1.0.conv1.weight": (54, 24, 1, 1),
                "layer1.0.conv3.weight": (216, 18, 1, 1),
                "layer2.7.bn3.weight": (480,),
                "layer3.0.conv1.weight": (120, 160, 1, 1),
                "linear.weight": (10, 960),
            },
        ),
        (
            ShuffleNetV2(10),
            {
                "layer1.0.conv1.weight": (24, 1, 3, 3),
                "layer1.3.conv3.weight": (58, 58, 1, 1),
                "layer2.0.conv5.weight": (116, 116, 1, 1),
                "layer3.0.bn4.weight": (232,),
                "conv2.weight": (1024, 464, 1, 1),
                "linear.bias": (10,),
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_repdistillers_names_are_the_nets_own(
    net: nn.Module, names: dict[str, tuple[int, ...]]
) -> None:
    state = net.state_dict()
    assert {name: tuple(state[name].shape) for name in names} == names


def test_a_shortcut_without_parameters_takes_every_second_pixel_between_channels_of_zeros() -> None:
    x = torch.arange(2.0 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    expected = torch.zeros(2, 8, 2, 2)  # 5 new channels: two before, three after
    expected[:, 2:5] = x[:, :, [0, 2]][:, :, :, [0, 2]]
    assert torch.equal(PaddedShortcut(3, 8, 2)(x), expected)
    with pytest.raises(ValueError, match="cannot go from 8 channels to 3"):
        PaddedShortcut(8, 3, 2)


def test_a_wide_block_shares_its_activation_with_a_convolution_in_the_shortcut_alone() -> None:
    x = torch.full((1, 4, 2, 2), -1.0)
    # The input itself; a convolution of ReLU's zeros
    for outputs, expected in ((4, -1.0), (8, 0.0)):
        block = PreActivationBlock(4, outputs, stride=1).eval()
        nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(x), torch.full((1, outputs, 2, 2), expected))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_torchvision_nets_take_gray_images(name: str) -> None:
    net = torchvision_net(name, num_classes=5, in_channels=1).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.slow
@pytest.mark.parametrize("pair", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_the_teacher_of_a_pair_is_the_larger(pair: str) -> None:
    config = check(composed(f"model={pair}"))
    if "timm" in str(config.teacher.net["_target_"]):
        pytest.importorskip("timm")
    teacher = teacher_count(json.dumps(config.teacher.net), config.teacher.image_size or 32)
    student = build_net(config.student.net, Shape(3, 32, 10), "student.net")
    assert teacher > 1.9 * count(student)


@functools.cache  # pairs share teachers
def teacher_count(node: str, side: int) -> int:
    return count(build_net(json.loads(node), Shape(3, side, 10), "teacher.net", load=False))


def correlated(count: int, channels: int = 3) -> torch.Tensor:
    """Images with correlated neighbouring pixels and channels."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, channels, 20, 20, generator=generator)
    smooth = nn.functional.avg_pool2d(noise, 3, 1) + noise[:, :1, 1:-1, 1:-1] + 0.3
    return smooth + 0.2 * torch.randn(smooth.shape, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_whitens_the_patches_of_the_images_it_started_from(channels: int) -> None:
    images, width = correlated(300, channels), 4 * channels
    net = SpeedNet(10, channels, 18, widths=[4, 4, 4])
    net.start_from(images)
    with torch.no_grad():
        found = net.whiten(images).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found[width:], -found[:width], rtol=0, atol=1e-5)
    covariance = torch.cov(found[:width])
    assert covariance.diag().min() > 0.95  # 1, less what is added to the variances
    assert (covariance - torch.eye(width)).abs().max() < 0.05
    assert not net.whiten.weight.requires_grad
    again = SpeedNet(10, channels, 18, widths=[4, 4, 4])
    again.start_from(images)
    assert torch.equal(again.whiten.weight, net.whiten.weight)


def test_the_convolutions_of_speednet_begin_as_the_identity() -> None:
    net = SpeedNet(10, widths=[30, 30, 20])
    x = torch.randn(2, 24, 8, 8)
    first, second, narrower = (
        net.block1.conv1(x),
        net.block1.conv2(torch.cat([x, x[:, :6]], 1)),
        net.block3.conv1(torch.cat([x, x[:, :6]], 1)),
    )
    assert torch.equal(first[:, :24], x)
    assert first[:, 24:].std() > 0
    assert torch.equal(second, torch.cat([x, x[:, :6]], 1))
    assert torch.equal(narrower, x[:, :20])


def test_sgd_moves_a_shift_by_its_own_rate_and_decays_it_like_the_others() -> None:
    layer, rate, lr, decay = Shift(3, 64.0), 64.0, 0.01, 0.5
    with torch.no_grad():
        layer.shift.copy_(torch.tensor([1.0, 2.0, -1.0]))
    x, weight = torch.randn(2, 3, 4, 4), torch.tensor([1.0, -2.0, 3.0])
    before = (layer(x) - x)[0, :, 0, 0]
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, weight_decay=decay)
    (layer(x) * weight[:, None, None]).sum().backward()
    optimizer.step()
    after = (layer(x) - x)[0, :, 0, 0]
    gradient = weight * 2 * 4 * 4  # of the sum over images and pixels
    torch.testing.assert_close(after, before - lr * (rate * gradient + decay * before))


def build(target: str, **keywords: object) -> nn.Module:
    return build_net({"_target_": target, **keywords}, Shape(1, 8, 10), "student.net")


class Answering(nn.Module):
    """Net with another output in training; its parameter is the first value of the output."""

    def __init__(self, num_classes: int, as_what: str) -> None:
        super().__init__()
        self.w, self.classes, self.as_what = nn.Parameter(torch.ones(1)), num_classes, as_what

    def forward(self, x: torch.Tensor) -> object:
        """Net that returns the logits and something else in training."""
        logits = self.w * torch.ones(len(x), self.classes)
        other = torch.zeros(len(x), 3)
        kinds = {
            "tuple": (logits, other),
            "logits": SimpleNamespace(loss=None, logits=logits),
            "dict": {"logits": logits, "aux": other},
            "wide": (other, logits),
            "none": SimpleNamespace(scores=logits),
        }
        return kinds[self.as_what] if self.training else logits


@pytest.mark.parametrize("kind", ["tuple", "logits", "dict"])
def test_of_what_a_net_answers_in_training_the_logits_are_taken(kind: str) -> None:
    node = {"_target_": f"{__name__}.Answering", "as_what": kind}
    net = build_net(node, Shape(1, 8, 10), "student.net", trained=True)
    for each in (net, copy.deepcopy(net)):
        for training in (True, False):
            assert torch.equal(each.train(training)(torch.zeros(5, 1, 8, 8)), torch.ones(5, 10))
    for kind, found in (("wide", r"\(2, 3\)"), ("none", "SimpleNamespace")):
        with pytest.raises(UserError, match=rf"student\.net: .*Answering gives {found}"):
            build_net({**node, "as_what": kind}, Shape(1, 8, 10), "student.net", trained=True)


@pytest.mark.slow
def test_googlenets_auxiliary_layers_do_not_stop_a_training() -> None:
    net = build_net(
        {
            "_target_": "kd.nets.torchvision.torchvision_net",
            "name": "googlenet",
            "aux_logits": True,
        },
        Shape(3, 32, 10),
        "student.net",
        trained=True,
    )
    found = net(torch.randn(2, 3, 32, 32))
    assert found.shape == (2, 10)
    assert found.grad_fn is not None


def test_build_does_not_move_batch_norm() -> None:
    net = build_net(
        {"_target_": "kd.nets.resnet.ResNet", "depth": 18, "width": 4},
        Shape(1, 8, 10),
        "student.net",
        trained=True,
    )
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
        ("kd.nets.resnet_cifar.ResNetCIFAR", {"depth": 18}, ["depth", "18", "6n + 2"]),
        (
            "kd.nets.resnet_cifar.ResNetCIFAR",
            {"depth": 20, "widths": [16, 32]},
            ["widths", "[16, 32]", "four"],
        ),
        (
            "kd.nets.resnet_cifar.ResNetCIFAR",
            {"depth": 20, "shortcut": "C"},
            ["shortcut", "'C'", "A"],
        ),
        ("kd.nets.wide_resnet.WideResNet", {"depth": 18, "widen": 2}, ["depth", "18", "6n + 4"]),
        ("kd.nets.speednet.SpeedNet", {"widths": [8, 8]}, ["widths", "[8, 8]", "three"]),
        ("kd.nets.speednet.SpeedNet", {}, ["image_size", "found 8", "from 9"]),
        ("kd.nets.vgg.VGG", {"depth": 9}, ["depth", "9", "8, 11, 13, 16, 19"]),
        ("torch.nn.Identity", {}, ["(2, 10)"]),
        ("torch.tensor", {"data": 1}, ["student.net._target_", "torch.tensor"]),
        ("torch.nn.init.calculate_gain", {"nonlinearity": "relu"}, ["not a torch.nn.Module"]),
        ("kd.nets.torchvision.torchvision_net", {"name": "resnet15"}, ["resnet15", "resnet18"]),
        (
            "kd.nets.torchvision.torchvision_net",
            {"name": "alexnet"},
            ["cannot take 1x8x8 images", "larger images may fit it, in folders by data.im"],
        ),
    ],
)
def test_a_net_that_cannot_be_built_is_one_message(
    target: str, keywords: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        build(target, **keywords)
    for word in words:
        assert word in str(error.value)
