"""Pretrained nets of torchvision and timm, offline, with weights made here."""

import json
import re
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from composed import TINY, composed, plan
from safetensors.torch import safe_open, save_file
from torch import Tensor, nn

import kd.nets.timm
from kd.config.construct import construct
from kd.config.schema import Config, check
from kd.data.digits import Digits
from kd.errors import UserError
from kd.files.stage_record import StageSpec
from kd.files.store import Store
from kd.measure.metrics import predict_logits
from kd.nets.build import build_net, normalization_of, pretrained_weights_of
from kd.nets.cnn import CNN
from kd.nets.head import head_of
from kd.nets.hooks import FeatureHooks, as_signals
from kd.nets.layer_paths import study
from kd.nets.pretrained_weights import for_gray
from kd.nets.torchvision import pretrained_weights, torchvision_net
from kd.runs.run import run
from kd.shape import Shape
from kd.stages.complete import complete
from kd.stages.result import load_net, load_teacher
from kd.stages.stage import make_stage
from kd.training.distiller import Distiller
from kd.training.loss_spec import read_loss
from kd.training.objective import Objective

ROOT = Path(kd.nets.timm.__file__).parents[2]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GRAY = (
    (pytest.approx((0.485 + 0.456 + 0.406) / 3),),
    (pytest.approx((0.229 + 0.224 + 0.225) / 3),),
)
State = dict[str, Tensor]


def moved(net: nn.Module) -> State:
    """A state dict unlike any fresh net's, batch-norm statistics included."""
    # Not a new dictionary: this one holds versions that old layers need.
    state: State = net.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor += 0.01 * torch.randn_like(tensor)
    return state


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch.hub cache; downloads fail at once, as without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return folder


def put(hub: Path, name: str, **options: Any) -> State:
    """Weights of a torchvision net in the cache, under torchvision's file name."""
    torch.manual_seed(5)
    state = moved(torchvision.models.get_model(name, weights=None, **options))
    file = torchvision.models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    torch.save(state, hub / file)
    return state


def node(name: str, pretrained: bool | str = True, **more: Any) -> dict[str, Any]:
    return {
        "_target_": "kd.nets.torchvision.torchvision_net",
        "name": name,
        "pretrained": pretrained,
        **more,
    }


class TestTorchvision:
    @pytest.mark.parametrize(
        ("name", "head", "size"),
        [
            ("resnet18", "fc", 32),
            ("mobilenet_v3_small", "classifier.3", 32),
            ("squeezenet1_1", "classifier.1", 32),
            ("densenet121", "classifier", 32),
            ("shufflenet_v2_x0_5", "fc", 32),
            ("mnasnet0_5", "classifier.1", 32),
            ("regnet_y_400mf", "fc", 32),
        ],
    )
    def test_all_but_the_head_is_loaded(self, name: str, head: str, size: int, hub: Path) -> None:
        state = put(hub, name)
        net = build_net(node(name), Shape(3, size, 7), "teacher.net")
        own = net.state_dict()
        assert own[f"{head}.weight"].shape[0] == 7
        rest = [key for key in own if not key.startswith(f"{head}.")]
        assert len(rest) == len(state) - 2
        assert all(torch.equal(own[key], state[key]) for key in rest)
        assert net.normalization == IMAGENET
        assert list(head_of(net, Shape(3, size, 7))) == [head]

    def test_the_head_depends_on_the_seed_alone(self, hub: Path) -> None:
        put(hub, "resnet18")
        heads = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            heads.append(torchvision_net("resnet18", 7, pretrained=True).fc.weight)
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])

    def test_as_many_classes_keep_the_head(self, hub: Path) -> None:
        state = put(hub, "resnet18")
        net = torchvision_net("resnet18", 1000, pretrained=True)
        assert torch.equal(net.fc.weight, state["fc.weight"])
        theirs = torchvision.models.resnet18()
        theirs.load_state_dict(state)
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(net.eval()(x), theirs.eval()(x))

    def test_gray_images(self, hub: Path) -> None:
        state = put(hub, "resnet18")
        net = build_net(node("resnet18"), Shape(1, 32, 7), "teacher.net")
        assert torch.equal(net.conv1.weight, state["conv1.weight"].sum(1, keepdim=True))
        assert torch.equal(net.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
        assert net.normalization == GRAY
        # The purpose of the sum: a gray image gives the same as its three-channel copy.
        x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
        weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
        three = nn.functional.conv2d(x.expand(-1, 3, -1, -1), weight)
        assert torch.allclose(nn.functional.conv2d(x, for_gray(weight)), three, rtol=0, atol=1e-12)

    def test_densenets_old_names(self, hub: Path) -> None:
        state = put(hub, "densenet121")
        (file,) = hub.iterdir()
        old = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value
            for key, value in state.items()
        }
        assert old.keys() != state.keys()
        torch.save(old, file)
        net = torchvision_net("densenet121", 7, pretrained=True)
        key = "features.denseblock1.denselayer1.norm1.weight"
        assert torch.equal(net.state_dict()[key], state[key])

    def test_inception_is_fed_as_it_was_trained(self, hub: Path) -> None:
        """torchvision applies ImageNet's normalisation and converts it to (x - 0.5) / 0.5 inside
        the net.
        """
        state = put(hub, "googlenet", aux_logits=True, init_weights=False)
        assert any(key.startswith("aux") for key in state)
        net = build_net(node("googlenet"), Shape(3, 32, 1000), "teacher.net").eval()
        theirs = torchvision.models.googlenet(
            transform_input=True, aux_logits=True, init_weights=False
        )
        theirs.load_state_dict(state)
        x = torch.rand(2, 3, 32, 32)
        mean, std = (torch.tensor(each)[:, None, None] for each in IMAGENET)
        # Only the first convolution: random layers after it hide nearly all differences
        with torch.no_grad():
            expected = theirs.eval().conv1(theirs._transform_input((x - mean) / std))
            assert net.normalization == ((0.5,) * 3, (0.5,) * 3)
            assert not net.transform_input
            assert torch.allclose(net.conv1((x - 0.5) / 0.5), expected, atol=1e-4)
            assert not torch.allclose(net.conv1((x - mean) / std), expected, atol=1e-2)

    def test_weights_by_name(self, hub: Path) -> None:
        first = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
        assert pretrained_weights("resnet50", "IMAGENET1K_V1").weights.endswith(
            first.url.rpartition("/")[2]
        )
        assert (
            pretrained_weights("resnet50", True).weights
            != pretrained_weights("resnet50", "IMAGENET1K_V1").weights
        )
        assert pretrained_weights("resnet50") is None
        assert pretrained_weights("efficientnet_v2_l", True).mean == (0.5, 0.5, 0.5)
        with pytest.raises(
            UserError,
            match=r"teacher\.net: pretrained: found 'V7', accepted are true, false, IMAGE",
        ):
            build_net(node("resnet50", "V7"), Shape(3, 32, 7), "teacher.net")

    def test_weights_of_another_net_are_refused(self, hub: Path) -> None:
        put(hub, "resnet18")
        file = torchvision.models.get_model_weights("resnet34").DEFAULT.url.rpartition("/")[2]
        next(hub.iterdir()).rename(hub / file)
        with pytest.raises(UserError, match="does not fit"):
            build_net(node("resnet34"), Shape(3, 32, 7), "teacher.net")

    def test_a_file_that_would_run_code_is_not(self, hub: Path, tmp_path: Path) -> None:
        put(hub, "resnet18")
        (file,) = hub.iterdir()
        torch.save({"fc.weight": nn.Linear(1, 1)}, file)
        with pytest.raises(UserError, match="no weights file"):
            torchvision_net("resnet18", 7, pretrained=True)

    def test_without_a_network_one_message(self, hub: Path) -> None:
        with pytest.raises(UserError) as error:
            build_net(node("resnet18"), Shape(3, 32, 7), "teacher.net")
        for word in ("resnet18", "resnet18-f37072fd.pth", str(hub), "https://download.pytorch.org",
                     "no network", f"put it here: {hub / 'resnet18-f37072fd.pth'}",
                     "teacher.net: resnet18", "teacher.net.pretrained=false"):  # fmt: skip
            assert word in str(error.value)

    def test_weights_from_elsewhere_need_no_file(self, hub: Path) -> None:
        net = build_net(node("resnet18"), Shape(3, 32, 7), "teacher.net", load=False)
        assert net.normalization == IMAGENET


timm = pytest.importorskip("timm")


@pytest.fixture
def hugging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache; its server fails at once, as without a network."""
    import huggingface_hub

    folder = tmp_path / "huggingface"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", offline)
    return folder


def put_timm(hugging: Path, name: str, **options: Any) -> State:
    """Weights of a timm net in the cache, in the layout of Hugging Face's client."""
    torch.manual_seed(5)
    state = moved(timm.create_model(name, **options))
    repository = hugging / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(state, repository / "snapshots" / "abc" / "model.safetensors")
    return state


def timm_node(name: str, pretrained: bool = True, **more: Any) -> dict[str, Any]:
    return {"_target_": "kd.nets.timm.timm_net", "name": name, "pretrained": pretrained, **more}


class TestTimm:
    def test_fresh(self) -> None:
        net = build_net(timm_node("resnet18", False), Shape(1, 32, 7), "student.net")
        assert normalization_of(net, ((0.1,), (0.2,))) == ((0.1,), (0.2,))

    def test_all_but_the_head_is_loaded(self, hugging: Path) -> None:
        state = put_timm(hugging, "resnet18.a1_in1k")
        net = build_net(timm_node("resnet18.a1_in1k"), Shape(3, 32, 7), "teacher.net")
        own = net.state_dict()
        assert own["fc.weight"].shape == (7, 512)
        assert all(torch.equal(own[key], state[key]) for key in own if not key.startswith("fc."))
        assert net.normalization == IMAGENET
        assert "state_dict" not in net.pretrained_cfg
        assert list(head_of(net, Shape(3, 32, 7))) == ["fc"]

    def test_gray_images_and_a_normalisation_of_its_own(self, hugging: Path) -> None:
        name = "mobilenetv3_small_050.lamb_in1k"
        assert timm.get_pretrained_cfg(name).mean == IMAGENET[0]
        state = put_timm(hugging, name)
        net = build_net(timm_node(name), Shape(1, 32, 7), "teacher.net")
        assert torch.allclose(
            net.conv_stem.weight, state["conv_stem.weight"].sum(1, keepdim=True), atol=1e-6
        )
        assert net.normalization == GRAY
        half = pretrained_weights_of(timm_node("vit_tiny_patch16_224.augreg_in21k_ft_in1k"), "x")
        assert half.normalization(3) == ((0.5,) * 3, (0.5,) * 3)

    def test_both_heads_of_a_distilled_transformer(self) -> None:
        net = build_net(
            timm_node("deit_tiny_distilled_patch16_224", False, img_size=32), Shape(3, 32, 7), "x"
        )
        assert list(head_of(net, Shape(3, 32, 7))) == ["head", "head_dist"]

    def test_labels_teach_one_head_and_the_teacher_the_other(self) -> None:
        config = check(composed("experiment=deit", "+student.net.depth=1"))
        assert config.student.taps == ["head", "head_dist"]
        shape = Shape(3, 32, 10)
        net = build_net(config.student.net, shape, "student.net")
        paths = study(net, config.student.taps, shape, where="student.taps")
        output = FeatureHooks(net, paths, ("feats",))(net, torch.randn(2, 3, 32, 32))
        signals = as_signals(output, "s")
        assert torch.allclose(output.logits, sum(signals["feats_s"]) / 2)
        teacher = torch.zeros(2, 10).index_fill(1, torch.tensor([4]), 5.0)
        signals |= {"logits_t": teacher, "target": torch.tensor([1, 1]), "progress": 0.5}
        sizes = {"shapes_s": paths.shapes}
        objective = Objective(read_loss(config.loss), shape, build_arguments=sizes)
        objective(signals)["loss"].backward()
        # The gradient of a cross-entropy is negative for the class that is taught alone
        for head, taught in ((net.head, 1), (net.head_dist, 4)):
            assert [i for i, slope in enumerate(head.bias.grad) if slope < 0] == [taught]
        with pytest.raises(UserError, match=r"student.taps: found .* \(64, 8, 8\)"):
            Objective(
                read_loss(config.loss), shape, build_arguments={"shapes_s": ((64, 8, 8),) * 2}
            )

    @pytest.mark.parametrize("pretrained", [False, True])
    def test_a_last_layer_for_few_classes_starts_narrow(
        self, pretrained: bool, hugging: Path
    ) -> None:
        name = "mobilenetv3_small_050.lamb_in1k"  # timm's own bound is 1 / sqrt(outputs), 0.71
        if pretrained:
            put_timm(hugging, name)
        net = build_net(timm_node(name, pretrained), Shape(3, 32, 2), "teacher.net")
        head = net.get_classifier()
        assert float(head.weight.abs().max()) <= head.in_features**-0.5
        zero = build_net(
            timm_node("vit_tiny_patch16_224", False, img_size=32), Shape(3, 32, 2), "x"
        )
        assert not zero.head.weight.abs().max() > 0.1, "timm's own, which is narrow, stays"

    def test_the_default_tag_is_the_named_one(self) -> None:
        tagged = pretrained_weights_of(timm_node("resnet18.a1_in1k"), "x")
        assert pretrained_weights_of(timm_node("resnet18"), "x") == tagged
        assert tagged.weights == "timm resnet18.a1_in1k timm/resnet18.a1_in1k"
        assert pretrained_weights_of(timm_node("resnet18.a2_in1k"), "x") != tagged

    def test_without_a_network_one_message(self, hugging: Path) -> None:
        with pytest.raises(UserError) as error:
            build_net(timm_node("resnet18"), Shape(3, 32, 7), "teacher.net")
        for word in (
            "timm/resnet18.a1_in1k/model.safetensors",
            str(hugging),
            "Hugging Face",
            "no network",
            "copy models--timm--resnet18.a1_in1k",
            "pretrained=false",
            "teacher.net: resnet18",
        ):
            assert word in str(error.value)

    def test_a_damaged_file(self, hugging: Path) -> None:
        put_timm(hugging, "resnet18.a1_in1k")
        (file,) = hugging.rglob("model.safetensors")
        file.write_bytes(b"nothing")
        with pytest.raises(UserError, match="no weights file"):
            build_net(timm_node("resnet18"), Shape(3, 32, 7), "teacher.net")

    @pytest.mark.parametrize(
        ("named", "words"),
        [
            (timm_node("resnet81"), ["teacher.net", "timm has no net 'resnet81'", "resnet18"]),
            (timm_node("resnet18.in22k"), ["timm has no weights 'resnet18.in22k'", "a1_in1k"]),
            (timm_node("vit_tiny_patch16_224", False), ["cannot take 1x8x8 images", "224"]),
            (timm_node("resnet18", False, wdth=3), ["teacher.net", "wdth"]),
        ],
    )
    def test_mistakes_are_one_message(self, named: dict[str, Any], words: list[str]) -> None:
        with pytest.raises(UserError) as error:
            build_net(named, Shape(1, 8, 7), "teacher.net")
        for word in words:
            assert word in str(error.value)

    @pytest.mark.parametrize("pretrained", [False, True])
    def test_not_installed(self, pretrained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(UserError, match="install it: pip install timm"):
            build_net(timm_node("resnet18", pretrained), Shape(3, 32, 7), "teacher.net")

    def test_is_not_imported_with_the_file(self) -> None:
        code = (
            "import sys, kd.nets.timm; print('timm' in sys.modules, 'huggingface_hub' in "
            "sys.modules)"
        )
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert out.stdout.split() == ["False", "False"]
        assert kd.nets.timm.__file__


RESNET = ("teacher=torchvision", "teacher.net.name=shufflenet_v2_x0_5")
PRETRAINED = (*RESNET, "teacher.net.pretrained=true")
SMALL = [override for override in TINY if "teacher.net" not in override]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Config]:
    def composed_and_checked(*overrides: str) -> Config:
        return check(composed(*SMALL, "name=test", f"output_dir={tmp_path / 'out'}", *overrides))

    return composed_and_checked


class TestNormalisationAndKeys:
    """A pretrained net gets the normalisation of its training wherever it gets pixels."""

    def spec(self, config: Config, name: str = "teacher") -> StageSpec:
        return make_stage(plan(config, name), config, construct(config.data, "data"), {}).spec

    def test_the_key_names_the_weights(self, make: Callable[..., Config]) -> None:
        spec = self.spec(make(*PRETRAINED))
        assert spec.pretrained == [
            "torchvision ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1 shufflenetv2_x0.5-f707e7126e.pth"
        ]
        student = self.spec(
            check(composed("student=torchvision", "student.net.pretrained=true")), "baseline"
        )
        assert "mobilenet_v3_small-047dcff4.pth" in student.pretrained[0]

    def test_nets_without_such_weights_have_no_such_key(self, make: Callable[..., Config]) -> None:
        for config in (make(*RESNET), make("teacher=mlp")):
            spec = self.spec(config)
            assert "pretrained" not in spec.plain()
            assert "pretrained" not in spec.net, "false is as good as not said"
            assert not {"trains", "normalization", "weights"} & spec.plain().keys()

    def test_everywhere(
        self, hub: Path, make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(hub, "shufflenet_v2_x0_5")
        seen: list[Any] = []
        original = Distiller.__init__

        def note(self: Distiller, *args: Any, **keywords: Any) -> None:
            seen.append((keywords["normalization"], keywords["teacher"]))
            original(self, *args, **keywords)

        monkeypatch.setattr(Distiller, "__init__", note)
        pair = (
            "student=torchvision",
            "student.net.name=shufflenet_v2_x0_5",
            "student.net.pretrained=true",
        )
        config = check(
            composed(*[o for o in SMALL if "student.net" not in o], "epochs=1", "teacher.epochs=1",
            "name=test",
                     f"output_dir={make().output_dir}", *PRETRAINED, *pair)
        )  # fmt: skip
        folder = run(config, "")
        (teacher, _), (baseline, _), (student, answering) = seen
        assert teacher == baseline == student == GRAY
        net = answering.live.answers.teacher
        assert (net.mean, net.std) == GRAY
        with safe_open(folder / "student.safetensors", "pt") as file:
            about = json.loads(file.metadata()["kd"])
        assert (tuple(about["mean"]), tuple(about["std"])) == GRAY
        # A stage in the store is read without its initial weights file.
        next(hub.iterdir()).unlink()
        report = json.loads((folder / "report.json").read_text())
        assert report["models"][0]["net"] == "shufflenet_v2_x0_5(pretrained=True)"
        done = Store(Path(config.output_dir) / "store").find(report["models"][0]["stage"])
        assert done
        net = load_net(done)
        assert net.normalization == GRAY
        assert (load_teacher(done).mean, load_teacher(done).std) == GRAY

    def test_logits_are_of_normalised_pixels(self, digits: Digits) -> None:
        images = digits.split.val
        pixels = images.pixels[torch.arange(4)].float() / 255
        seen: list[Tensor] = []

        class Spy(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(x)
                return torch.zeros(len(x), 10)

        net = Spy()
        predict_logits(net, digits, images)
        mean, std = digits.statistics
        assert torch.allclose(seen[0][:4], (pixels - mean[0]) / std[0], atol=1e-5)
        seen.clear()
        net.normalization = ((0.25,), (0.5,))  # type: ignore[assignment]
        predict_logits(net, digits, images)
        assert torch.allclose(seen[0][:4], (pixels - 0.25) / 0.5, atol=1e-6)

    def test_a_module_called_normalization_is_none(self) -> None:
        net = CNN(10)
        net.normalization = nn.Identity()
        assert normalization_of(net, ((0.1,), (0.2,))) == ((0.1,), (0.2,))

    def test_a_normalisation_for_other_channels_is_refused(
        self, make: Callable[..., Config], tmp_path: Path
    ) -> None:
        torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / "a.pt")
        config = make(
            "teacher=mlp", "teacher.normalization={mean: [0.5,0.5,0.5], std: [0.2,0.2,0.2]}"
        )
        data = construct(config.data, "data")
        with pytest.raises(
            UserError, match=r"teacher\.normalization: its normalisation .*1 channel"
        ):
            complete(make_stage(plan(config, "teacher"), config, data, {}), Store(tmp_path), data)


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process with empty caches and without a network."""
    environment = {"HOME": str(cwd), "PATH": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    line = [sys.executable, "-m", "kd.train", *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_command_without_a_network(library: str, tmp_path: Path) -> None:
    started = time.monotonic()
    failed = command(
        f"teacher={library}",
        "teacher.net.name=resnet18",
        "teacher.net.pretrained=true",
        cwd=tmp_path,
    )
    assert failed.returncode == 2, failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.splitlines()) <= 4, failed.stderr
    assert failed.stdout == ""
    for word in ("resnet18", "cannot be downloaded", str(tmp_path), "pretrained=false"):
        assert word in failed.stderr
    assert time.monotonic() - started < 90
    assert not list(tmp_path.glob("outputs/store/*"))
