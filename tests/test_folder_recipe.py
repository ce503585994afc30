"""The recipe for folders of images: batches, lengths and weights that suit the images there are."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from composed import FLOAT32, composed, composed_command
from test_teacher_data import folder

from kd.command import typed_keys
from kd.config.schema import Config, check
from kd.data.batches import EpochOrder
from kd.data.digits import Digits
from kd.data.image_folder import ImageFolder
from kd.nets.build import build_net
from kd.runs.run import run
from kd.shape import Shape
from kd.stages.batch import suit_to_data
from kd.stages.stage import make_stage

FILE = "resnet18-f37072fd.pth"  # what torchvision calls its weights of 2018


class TestOrder:
    @pytest.mark.parametrize(
        ("images", "batch", "ranks"), [(432, 21, 1), (33, 16, 1), (17, 16, 1), (100, 7, 3)]
    )
    def test_without_drop_last_all_images_come_once(
        self, images: int, batch: int, ranks: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[int] = []
        for rank in range(ranks):
            monkeypatch.setattr("kd.data.batches.rank", lambda rank=rank: rank)
            batches = list(EpochOrder(images, batch, 3, ranks, drop_last=False))
            assert len(batches) == math.ceil(images // ranks / batch)
            sizes = [len(each) for each in batches]
            assert max(sizes) <= batch
            assert max(sizes) - min(sizes) <= 1
            shown += [position for each in batches for position in each]
        assert len(set(shown)) == len(shown) == images - images % ranks

    def test_with_drop_last_the_same_images_as_ever(self) -> None:
        order = EpochOrder(10, 4, 0)
        assert [len(each) for each in order] == [4, 4]


def config_of(*words: str) -> Config:
    return check(composed(*words), typed_keys(words)).resolve()


def small(tmp_path: Path, count: int, **options: Any) -> ImageFolder:
    root = folder(tmp_path / "own", "ab", range(count))
    return ImageFolder(root, image_size=8, channels=1, **options)


HERE = f"data.root={Path(__file__).parent}"  # any folder that is there
FEW = (*FLOAT32, "data=image_folder", HERE, "teacher=mlp", "student=mlp")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "teacher", "student"),
    [
        # 12 pictures of two classes: 24, of which 5 for test (20 % of 24) and 2 for validation, so
        # 17 are left: batches of 8, three of them; 600 / 3 and 1,000 / 3 epochs.
        ((), (8, 200), (8, 334)),
        (("epochs=3",), (8, 200), (8, 3)),
        (("teacher.epochs=4", "batch_size=10"), (8, 4), (10, 500)),
        (("min_steps=10",), (8, 200), (8, 20)),
        (("drop_last=true",), (8, 200), (8, 500)),
        (("epochs=3", "min_steps=10"), (8, 200), (8, 4)),  # what is typed counts, both of it
        (("batch_size_per_device=12",), (8, 200), (12, 500)),
        (("+stage.baseline.epochs=2",), (8, 200), (8, 2)),
    ],
)
def test_batches_and_epochs_by_the_number_of_images(
    words: tuple[str, ...],
    teacher: tuple[int, int],
    student: tuple[int, int],
    tmp_path: Path,
) -> None:
    data = small(tmp_path, 12, test_fraction=0.2)
    assert len(data.split.train) == 17
    config, chain = suit_to_data(config_of(*FEW, *words), data)
    recipes = {plan.name: (plan.recipe.batch_size, plan.recipe.epochs) for plan in chain}
    assert recipes["teacher"] == teacher
    assert recipes["baseline"] == student
    # What was chosen stands in the config, which repeats it.
    again, same = suit_to_data(config, data)
    assert again == config
    assert [plan.recipe for plan in same] == [plan.recipe for plan in chain]
    key = make_stage(chain[0], config, data, {}).spec
    assert (key.batch_size, key.epochs) == teacher
    assert "drop_last" in key.model_fields_set
    said = " ".join(data.notes)
    assert ("min_steps=600 makes 200 epochs out of 10" in said) == (teacher[1] == 200)


@pytest.mark.slow
def test_other_data_keep_their_recipe() -> None:
    config, chain = suit_to_data(config_of("data=digits"), Digits(test_fraction=0.25))
    assert (config.batch_size, config.epochs, config.teacher.epochs) == (128, 40, 40)
    assert all(plan.recipe.drop_last for plan in chain)


@pytest.mark.parametrize(
    ("optimiser", "rate"), [("sgd", 0.01), ("adamw", 0.004), ("muon", 0.02), (None, 0.01)]
)
def test_a_low_rate_for_sgd_alone(optimiser: str | None, rate: float) -> None:
    """0.004 and 0.02 are the optimisers' own, in conf/optim."""
    words = [f"optim@teacher.optim={optimiser}"] if optimiser else []
    assert config_of(*FEW, *words).teacher.optim["lr"] == rate


@pytest.mark.parametrize(
    ("words", "net", "rate"),
    [
        ((), "mobilenet_v3_small", 0.01),
        (("student=torchvision",), "mobilenet_v3_small", 0.01),
        (("student=torchvision", "optim=adamw"), "mobilenet_v3_small", 0.004),  # AdamW's own
        (("student=torchvision", "optim.lr=2"), "mobilenet_v3_small", 2),
        (("student=cnn",), None, 0.004),
        (("model=resnet18_to_cnn",), None, 0.004),
    ],
)
def test_a_student_with_weights_to_start_from(
    words: tuple[str, ...], net: str | None, rate: float
) -> None:
    config = composed_command("train", "data=image_folder", HERE, *words)
    assert config.student.net.get("name") == net
    assert config.student.net.get("pretrained") == (net and "auto")
    assert config.optim.lr == rate


def test_other_data_have_the_cnn() -> None:
    config = composed_command("train", "data=cifar10")
    assert config.student.net._target_ == "kd.nets.cnn.CNN"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's own folder of weights, empty, and no network."""
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(place.parent))

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    return place


AUTO = (*FLOAT32, "data=image_folder", HERE, "teacher=resnet18", "student=mlp")


class TestPretrained:
    @pytest.mark.slow
    def test_weights_in_torchs_cache_are_taken(self, cache: Path, tmp_path: Path) -> None:
        torch.manual_seed(3)
        theirs = torchvision.models.resnet18()
        torch.save(theirs.state_dict(), cache / FILE)
        data = small(tmp_path, 12)
        data = ImageFolder(str(data.root), image_size=64)
        config, chain = suit_to_data(config_of(*AUTO), data)
        assert config.teacher.net["pretrained"] is True
        assert any("starts from pretrained weights" in note for note in data.notes)
        net = build_net(chain[0].net, data.shape, "teacher.net")
        assert torch.equal(net.layer3[0].conv1.weight, theirs.layer3[0].conv1.weight)  # type: ignore
        assert net.fc.out_features == 2  # type: ignore[union-attr]
        images = torch.randn(2, 3, 64, 64)
        theirs.fc, net.fc = torch.nn.Identity(), torch.nn.Identity()  # type: ignore[assignment]
        assert torch.allclose(net.eval()(images), theirs.eval()(images), atol=1e-5)
        spec = make_stage(chain[0], config, data, {}).spec
        assert spec.pretrained == [f"torchvision ResNet18_Weights.IMAGENET1K_V1 {FILE}"]
        assert net.normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    @pytest.mark.slow
    def test_a_student_takes_weights_too(self, cache: Path, tmp_path: Path) -> None:
        torch.manual_seed(3)
        theirs = torchvision.models.mobilenet_v3_small()
        torch.save(theirs.state_dict(), cache / "mobilenet_v3_small-047dcff4.pth")
        data = ImageFolder(str(small(tmp_path, 12).root), image_size=64)
        words = (*FLOAT32, "data=image_folder", HERE, "teacher=mlp", "student=mobilenet_v3_small")
        config, chain = suit_to_data(config_of(*words), data)
        assert config.student.net["pretrained"] is True
        assert any(note.startswith("the student starts from pretrained") for note in data.notes)
        assert chain[1].net["pretrained"] is True
        net = build_net(chain[1].net, data.shape, "student.net")
        weight = theirs.features[1].block[0][0].weight
        assert torch.equal(net.features[1].block[0][0].weight, weight)  # type: ignore

    @pytest.mark.usefixtures("cache")
    def test_a_student_from_scratch_without_them(self, tmp_path: Path) -> None:
        data = small(tmp_path, 12)
        words = (*FLOAT32, "data=image_folder", HERE, "teacher=mlp", "student=mobilenet_v3_small")
        config, _ = suit_to_data(config_of(*words), data)
        assert config.student.net["pretrained"] is False
        note = next(
            note for note in data.notes if note.startswith("the student starts from scratch")
        )
        assert note.endswith("or student=cnn, made to start from scratch")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("size", "words", "reason"),
        [
            (64, (), "cannot be downloaded"),
            (32, (), "are for width 64 and the stem imagenet"),
            (64, ("teacher.net.width=16",), "found True with width 16"),
        ],
    )
    @pytest.mark.usefixtures("cache")
    def test_from_scratch_without_weights(
        self, size: int, words: tuple[str, ...], reason: str, tmp_path: Path
    ) -> None:
        data = ImageFolder(str(small(tmp_path, 12).root), image_size=size)
        config, _ = suit_to_data(config_of(*AUTO, *words), data)
        assert config.teacher.net["pretrained"] is False
        note = next(note for note in data.notes if "from scratch" in note)
        assert reason in note
        assert "expect an accuracy far below" in note

    @pytest.mark.slow
    def test_with_a_path_nothing_is_looked_for(self, tmp_path: Path) -> None:
        data = small(tmp_path, 12)
        own = tmp_path / "own.safetensors"
        own.touch()
        config, _ = suit_to_data(config_of(*AUTO, f"teacher.path={own}"), data)
        assert config.teacher.net["pretrained"] is False
        assert not any("weights" in note for note in data.notes)

    def test_other_widths_have_none(self) -> None:
        node = {"_target_": "kd.nets.resnet.ResNet", "depth": 18, "pretrained": True, "width": 8}
        with pytest.raises(Exception, match="ImageNet's weights are for width 64"):
            build_net(node, Shape(3, 64, 2), "teacher.net")


@pytest.mark.slow
def test_a_run_on_a_folder_says_what_was_chosen(tmp_path: Path) -> None:
    root = folder(tmp_path / "own", "ab", range(12))
    words = (
        *(*FLOAT32, "data=image_folder", f"data.root={root}", "data.image_size=8"),
        *("data.channels=1", "model=mlp_to_mlp", "min_steps=9", "teacher.min_steps=7"),
        *("epochs=1", "teacher.epochs=1", "pictures=false", f"output_dir={tmp_path}", "name=test"),
    )
    place = run(check(composed(*words)), "a test")
    report = json.loads((place / "report.json").read_text())
    # 17 training images in three batches of 8 at most.
    assert [model["epochs"] for model in report["models"]] == [3, 3, 3]
    assert (report["config"]["epochs"], report["config"]["batch_size"]) == (3, 8)
    assert "min_steps=9 makes 3 epochs out of 1" in (place / "report.md").read_text()
