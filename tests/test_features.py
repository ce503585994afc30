"""Feature hooks record what was there, and change nothing."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from composed import composed
from torch import Tensor, nn

from kd.config.schema import check
from kd.data.digits import Digits
from kd.errors import UserError
from kd.files.store import StageResult
from kd.nets.cnn import CNN
from kd.nets.cnn_shallow import ShallowCNN
from kd.nets.hooks import FeatureHooks, as_signals
from kd.nets.layer_paths import LayerPath, study
from kd.nets.mlp import MLP
from kd.nets.mobilenet_v2 import MobileNetV2
from kd.nets.pairing import default_taps, pair
from kd.nets.resnet import ResNet
from kd.nets.resnet_cifar import ResNetCIFAR
from kd.nets.torchvision import torchvision_net
from kd.nets.vgg import VGG
from kd.nets.wide_resnet import WideResNet
from kd.shape import Shape
from kd.stages.chain import chain_of
from kd.stages.stage import make_stage
from kd.stages.try_out import try_out
from kd.teachers.feature_teacher import FeatureTeacher
from kd.teachers.frozen_teacher import FrozenTeacher

SHAPE = Shape(3, 16, 5)
ALL = ("feats", "preacts", "pooled", "head")


class InPlace(nn.Module):
    """Net whose modules overwrite the hooked outputs in place; dropout only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.plain = nn.Conv2d(6, 6, 1)
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        return self.fc(self.plain(self.drop(self.conv2(x))).mean((2, 3)))


def seen(
    net: nn.Module, paths: list[str], x: Tensor, kinds: tuple[str, ...] = ALL
) -> dict[str, Any]:
    paths = study(net, paths, SHAPE, where="student.taps", training=net.training)
    return FeatureHooks(net, paths, kinds)(net, x)[1]


def resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet(5, 18, 3, 16, width=4)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class TestWhatIsSeen:
    def test_is_what_each_module_returned(self, x: Tensor) -> None:
        net = resnet().eval()
        found = seen(net, ["layer1", "layer3"], x)
        stem = net.relu(net.bn1(net.conv1(x)))
        one = net.layer1(stem)
        three = net.layer3(net.layer2(one))
        assert torch.equal(found["feats"][0], one)
        assert torch.equal(found["feats"][1], three)
        assert torch.equal(found["pooled"], net.layer4(three).mean((2, 3)))
        assert found["head"] is net.fc

    def test_before_the_last_activation(self, x: Tensor) -> None:
        """The block calls its ReLU twice in place; the hook sees the input of the second call."""
        net = resnet().eval()
        found = seen(net, ["layer1"], x)
        before = net.layer1[0](net.relu(net.bn1(net.conv1(x))))
        block = net.layer1[1]
        expected = block.bn2(block.conv2(block.bn1(block.conv1(before)).relu())) + before
        assert (expected < 0).any()
        torch.testing.assert_close(found["preacts"][0], expected)
        torch.testing.assert_close(found["feats"][0], expected.relu())

    def test_without_an_activation_the_tap_itself(self, x: Tensor) -> None:
        found = seen(resnet().eval(), ["layer1.0.conv1"], x)
        assert torch.equal(found["preacts"][0], found["feats"][0])
        assert (found["feats"][0] < 0).any()

    @pytest.mark.parametrize("training", [False, True])
    def test_a_later_in_place_module_does_not_change_it(self, training: bool, x: Tensor) -> None:
        net = InPlace().train(training)
        paths = study(net, ["conv", "bn", "conv2", "plain"], SHAPE, where="taps", training=training)
        torch.manual_seed(1)
        feats = FeatureHooks(net, paths, ALL)(net, x)[1]["feats"]
        torch.testing.assert_close(feats[0], net.conv(x))
        fresh = copy.deepcopy(net)
        torch.testing.assert_close(feats[1], fresh.bn(fresh.conv(x)))
        torch.testing.assert_close(
            feats[2], net.conv2(fresh.bn(fresh.conv(x)).relu()) if not training else feats[2]
        )
        assert (feats[1] < 0).any()
        assert (feats[2] == 0).float().mean() < 0.1  # dropout has not touched it
        copied = {place.path for place in paths.copied if place.side == "output"}
        assert copied == ({"bn", "conv2"} if training else {"bn"})  # and nothing else is copied

    def test_gradient_flows_through(self, x: Tensor) -> None:
        net = InPlace()
        seen(net, ["bn"], x)["feats"][0].pow(2).sum().backward()
        assert net.conv.weight.grad.abs().sum() > 0

    def test_shapes(self) -> None:
        paths = study(resnet(), ["layer1", "layer4"], SHAPE, where="taps")
        assert paths.shapes == ((4, 16, 16), (32, 2, 2))
        assert (paths.width, paths.head) == (32, "fc")
        assert paths.preacts[0] == LayerPath("layer1.1.relu", "input")

    def test_of_a_perceptron(self, x: Tensor) -> None:
        net = MLP(5, 3, 16, hidden=[7, 6])
        assert net.taps == ("hidden.1", "hidden.3")
        found = seen(net, list(net.taps), x)
        assert [f.shape for f in found["feats"]] == [(4, 7), (4, 6)]
        torch.testing.assert_close(found["preacts"][1].relu(), found["pooled"])


class TestLookingChangesNothing:
    def test_neither_the_net_nor_the_random_state(self) -> None:
        net = InPlace()
        before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
        state = torch.get_rng_state()
        study(net, ["bn"], SHAPE, where="taps", training=True)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
        assert modes == [m.training for m in net.modules()]
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    def test_hooks_keep_nothing(self, x: Tensor) -> None:
        net = resnet()
        taps = FeatureHooks(net, study(net, ["layer1"], SHAPE, where="taps"), ALL)
        net(x)  # not through the taps
        assert not taps.found
        taps(net, x)
        assert not taps.found
        with pytest.raises(RuntimeError):
            taps(net, x[:, :1])  # fails half way
        assert not taps.on
        assert not taps.found

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
    def test_a_copy_watches_its_own_net(self, copied: Callable[[Any], Any], x: Tensor) -> None:
        net = resnet().eval()
        taps = FeatureHooks(net, study(net, ["layer2"], SHAPE, where="taps"), ALL)
        taps(net, x)
        other, its = copied((net, taps))
        with torch.no_grad():
            other.layer2[1].bn2.weight.fill_(3.0)
        assert not torch.equal(its(other, x)[1]["feats"][0], taps(net, x)[1]["feats"][0])
        assert not taps.found
        assert not its.found

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    @pytest.mark.parametrize("make", [resnet, InPlace])
    def test_compiled(self, backend: str, make: Callable[[], nn.Module], x: Tensor) -> None:
        """Compiled in place and as a wrapper; with gradients, and after calls without hooks."""
        torch._dynamo.reset()
        net = make().eval()
        taps = FeatureHooks(
            net, study(net, ["conv1" if make is resnet else "bn"], SHAPE, where="taps"), ALL
        )
        logits, plain = taps(net, x)
        for call in (torch.compile(net, backend=backend), net):
            if call is net:
                net.compile(backend=backend)
            for _ in range(2):
                call(x)
                assert not taps.found
                again, found = taps(call, x)
                torch.testing.assert_close(again, logits)
                torch.testing.assert_close(found["feats"][0], plain["feats"][0])
                torch.testing.assert_close(found["pooled"], plain["pooled"])
                net.zero_grad()
                found["feats"][0].sum().backward()
                assert next(net.parameters()).grad.abs().sum() > 0


class MaxPooled(nn.Module):
    """Its last layer gets the largest values of the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).amax((2, 3)))


@pytest.mark.parametrize(
    "net",
    [WideResNet(5, 10, 1), VGG(5, 8, width=8), resnet(), CNN(5), MobileNetV2(5, width=0.25)]
    + [torchvision_net(name, 5) for name in ("mobilenet_v2", "shufflenet_v2_x0_5")],
    ids=lambda net: type(net).__name__,
)
@pytest.mark.parametrize("training", [False, True])
def test_last_maps_are_those_whose_mean_the_last_layer_gets(net: nn.Module, training: bool) -> None:
    """Where an activation follows the last stage, or a dropout the mean, too."""
    shape = Shape(3, 64, 5)
    paths = study(net.train(training), [], shape, where="taps", training=training)
    hooks = FeatureHooks(net, paths, ("maps", "pooled"))
    maps = hooks(net.eval(), torch.randn(4, 3, 64, 64))[1]
    assert maps["maps"].shape[2] > 1
    torch.testing.assert_close(maps["maps"].mean((2, 3)), maps["pooled"], rtol=1e-4, atol=1e-5)


def test_a_net_without_such_maps_is_refused() -> None:
    paths = study(MaxPooled(), [], SHAPE, where="taps")
    with pytest.raises(UserError, match="no module of MaxPooled gives maps whose mean the last"):
        FeatureHooks(MaxPooled(), paths, ("maps",))


@pytest.mark.parametrize("training", [False, True])
def test_preacts_of_a_preactivation_net_are_after_the_norm(training: bool) -> None:
    torch.manual_seed(0)
    net = WideResNet(5, depth=10, widen=1).train(training)
    x = torch.randn(4, 3, 8, 8)
    paths = study(net, net.taps, SHAPE, where="taps", training=training)
    found = FeatureHooks(net, paths, ALL)(net, x)[1]
    one = net.block1(net.conv1(x))
    two = net.block2(one.clone())
    three = net.block3(two.clone())
    norms = (net.block2[0].bn1, net.block3[0].bn1, net.bn)
    for norm, maps, preact, tap in zip(
        norms, (one, two, three), found["preacts"], found["feats"], strict=True
    ):
        torch.testing.assert_close(preact, norm(maps))
        torch.testing.assert_close(tap, maps)
        assert preact.min() < 0  # an in-place ReLU has not cut it


class TestDefaults:
    @pytest.mark.parametrize(
        ("net", "stem", "taps"),
        [
            (ResNetCIFAR(5, 8), "relu", ["layer1", "layer2", "layer3"]),
            (WideResNet(5, 10, 1), "conv1", ["block1", "block2", "block3"]),
            (VGG(5, 8, width=8), "block1", ["block2", "block3", "block4", "block5"]),
            (resnet(), "relu", ["layer1", "layer2", "layer3", "layer4"]),
        ],
    )
    def test_of_the_papers_nets(self, net: nn.Module, stem: str, taps: list[str]) -> None:
        assert default_taps(net, SHAPE) == taps
        assert default_taps(net, SHAPE, stem=True) == [stem, *taps]

    @pytest.mark.parametrize(
        ("net", "taps"),
        [
            (resnet(), ["layer1", "layer2", "layer3", "layer4"]),
            (CNN(5), ["features.relu2", "features.relu4"]),
            (ShallowCNN(5, 3, 16), ["relu"]),
            (torchvision_net("resnet18", 5), ["layer1", "layer2", "layer3", "layer4"]),
        ],
        ids=["resnet", "cnn", "cnn_shallow", "torchvision"],
    )
    def test_where(self, net: nn.Module, taps: list[str]) -> None:
        shape = Shape(3, 64, 5) if not hasattr(net, "taps") else SHAPE
        assert default_taps(net, shape) == taps
        study(net, taps, shape, where="taps")

    def test_of_torchvisions_others(self) -> None:
        net = torchvision_net("mobilenet_v3_small", 5)
        shapes = study(
            net, default_taps(net, Shape(3, 64, 5)), Shape(3, 64, 5), where="taps"
        ).shapes
        assert [size for _, size, _ in shapes] == [16, 8, 4, 2]  # one for each resolution

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
    def test_of_timms(self, name: str) -> None:
        from kd.nets.timm import timm_net

        options = {"img_size": 32, "patch_size": 8} if "vit" in name else {}
        net = timm_net(name, 5, **options)
        taps = default_taps(net, Shape(3, 32, 5))
        expected = (
            [f"blocks.{i}" for i in (2, 5, 8, 11)]
            if "vit" in name
            else [f"layer{i}" for i in range(1, 5)]
        )
        assert taps == expected
        assert study(net, taps, Shape(3, 32, 5), where="taps").width > 0

    def test_pairs_are_the_last_ones(self) -> None:
        assert pair(CNN(5), resnet(), None, None, SHAPE) == (
            ["features.relu2", "features.relu4"],
            ["layer3", "layer4"],
        )
        assert pair(CNN(5), resnet(), None, ["layer2"], SHAPE) == (["features.relu4"], ["layer2"])
        assert pair(CNN(5), resnet(), ["features.relu1"], ["layer2"], SHAPE) == (
            ["features.relu1"],
            ["layer2"],
        )

    @pytest.mark.parametrize(
        ("student", "teacher", "one", "two", "message"),
        [
            (
                CNN(5),
                resnet(),
                ["features.relu4"],
                ["layer1", "layer2"],
                "student.taps: found 1 .* teacher.taps has 2",
            ),
            (
                CNN(5),
                resnet(),
                ["features.relu1", "features.relu2", "features.relu4"],
                ["layer1"],
                "found 3",
            ),
            (
                CNN(5),
                resnet(),
                None,
                ["layer1", "layer2", "layer3"],
                "student.taps: must be given: the net has 2",
            ),
            (
                nn.Sequential(nn.Flatten(), nn.Linear(768, 5)),
                resnet(),
                None,
                None,
                "must be given: Sequential has no",
            ),
        ],
    )
    def test_refused(
        self, student: nn.Module, teacher: nn.Module, one: Any, two: Any, message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            pair(student, teacher, one, two, SHAPE)


class TestRefused:
    @pytest.mark.parametrize(
        ("path", "message"),
        [
            (
                "layer5",
                r"student.taps: the net has no module 'layer5'; did you mean 'layer\d'\?; "
                "at the top it has conv1,",
            ),
            (
                "layer1.0.bn3",
                r"did you mean 'layer1.0.bn\d'\?; "
                "in 'layer1.0' it has layer1.0.conv1, layer1.0.bn1",
            ),
            ("", "the net has no module ''"),
        ],
    )
    def test_a_wrong_path(self, path: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            study(resnet(), [path], SHAPE, where="student.taps")

    def test_a_module_that_is_not_met(self) -> None:
        with pytest.raises(UserError, match="does not reach 'unused'"):
            study(InPlace(), ["unused"], SHAPE, where="student.taps")

    def test_no_embedding(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        paths = study(net, ["0"], Shape(3, 16, 5), where="student.taps")
        FeatureHooks(net, paths, ["feats"])
        with pytest.raises(UserError, match="Sequential does not end in one such layer"):
            FeatureHooks(net, paths, ["pooled"])


def both(feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
    return sum(f.mean() for f in feats_s) - sum(f.mean() for f in feats_t)


def shaped(feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
    return (feats_s[0] - feats_t[0]).mean()


def of_each(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    return (logits_s - logits_t).square().mean(1)


def of_no_net(logits_s: Tensor) -> float:
    return float(logits_s.mean())


def of_the_teacher(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    return logits_t.square().mean() + logits_s.detach().mean()


def looks(loss: str) -> list[str]:
    """Overrides that replace the loss by one of the above."""
    return ["~loss.terms.kd", f"+loss.terms.f={{loss: {{_target_: test_features.{loss}}}}}"]


class TestStages:
    """As a run takes them from its config."""

    def stage(self, digits: Digits, *overrides: str) -> Any:
        cfg = composed(
            "stages=[teacher,distill]",
            "teacher.net.hidden=[9,8]",
            "student.net.hidden=[4]",
            *overrides,
        )
        plan = chain_of(check(cfg))[-1]
        return make_stage(plan, check(cfg), digits, {"teacher": StageResult("key", None, {})})  # type: ignore[arg-type]

    @pytest.mark.slow
    def test_taps_are_in_the_key_where_the_loss_uses_them(self, digits: Digits) -> None:
        term = looks("both")
        made = self.stage(digits, *term)
        assert made.spec.taps == {"student": ["hidden.1"], "teacher": ["hidden.3"]}
        assert self.stage(digits, *term, "teacher.taps=[hidden.3]").key == made.key
        assert self.stage(digits, *term, "teacher.taps=[hidden.1]").key != made.key
        assert "taps" not in self.stage(digits).spec.plain()
        assert self.stage(digits).key == self.stage(digits, "student.taps=[hidden.1]").key

    def test_a_wrong_path_fails_before_training(self, digits: Digits) -> None:
        cfg = check(composed(*looks("both"), "student.taps=[hiden.1]"))
        with pytest.raises(
            UserError,
            match=r"student.taps: the net has no module 'hiden.1'; did you mean 'hidden.1'",
        ):
            try_out(chain_of(cfg)[-1], digits)

    def test_features_that_do_not_fit_fail_before_training(self, digits: Digits) -> None:
        cfg = check(composed(*looks("shaped"), "student.net.hidden=[3]"))
        with pytest.raises(
            UserError, match="loss: does not accept the features: The size of tensor"
        ):
            try_out(chain_of(cfg)[-1], digits)

    @pytest.mark.parametrize(
        ("loss", "said"),
        [
            ("of_each", r"test_features\.of_each gives values \[2\] for two images; needed is"),
            ("of_no_net", r"of_no_net gives -?\d\S+ for two images"),
            ("of_the_teacher", r"loss\.terms\.f\.loss: \S+ gives a number without a gradient"),
        ],
    )
    def test_a_loss_of_ones_own_that_cannot_teach_fails_before_training(
        self, loss: str, said: str, digits: Digits
    ) -> None:
        with pytest.raises(UserError, match=said):
            try_out(chain_of(check(composed(*looks(loss))))[-1], digits)

    def test_only_the_longer_list_is_cut(
        self, digits: Digits, capsys: pytest.CaptureFixture[str]
    ) -> None:
        try_out(chain_of(check(composed(*looks("both"))))[-1], digits)
        assert (
            "distill: looks at hidden.1 of the student, with hidden.1 of its teacher"
            in capsys.readouterr().err
        )


def test_the_teacher_answers_and_shows_in_one_pass(digits: Digits) -> None:
    net = ResNet(10, 18, 1, 8, width=4)
    before = copy.deepcopy(net.state_dict())
    frozen = FrozenTeacher(net, *digits.statistics)
    paths = study(frozen.net, ["layer1"], digits.shape, where="teacher.taps")
    teacher = FeatureTeacher(frozen, paths, ["feats", "pooled", "head"])
    x = torch.rand(6, 1, 8, 8)
    calls = []
    frozen.net.register_forward_hook(lambda *_: calls.append(1))
    found = as_signals(teacher(x, torch.arange(6), 0), "t")
    assert calls == [1]
    assert set(found) == {"logits_t", "feats_t", "pooled_t", "head_t"}
    # float16
    torch.testing.assert_close(
        found["head_t"](found["pooled_t"]), found["logits_t"], rtol=1e-2, atol=1e-2
    )
    assert not any(f.requires_grad for f in (*found["feats_t"], found["pooled_t"]))
    assert all(
        torch.equal(before[name], tensor) for name, tensor in frozen.net.state_dict().items()
    )
    assert copy.deepcopy(teacher) is teacher
