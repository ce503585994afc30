"""The papers' protocol: all images for training, the last epoch's weights, test by epoch."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import exit_code
from composed import TINY, composed
from safetensors.torch import load_file

from kd.config.schema import Config, check
from kd.data.base import DataModule, Images, Source
from kd.data.batches import EpochOrder
from kd.errors import UserError
from kd.files.store import OTHER_EPOCH, Store
from kd.runs.run import run

SMALL = ("data=digits", "model=mlp_to_mlp", *TINY)


def test_without_a_validation_part_nothing_is_selected(
    make_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("data.val_fraction=0", "data.limit=null", "epochs=1", "teacher.epochs=2")
    folder = run(config, "a test")
    report = json.loads((folder / "report.json").read_text())
    # A quarter of the 1,797 digits is the test part
    assert [report["data"][part] for part in ("train", "val", "test")] == [1348, 0, 449]
    for model in report["models"]:
        assert model["val"] == {"best": None, "last": None}
        assert model["test_by_epoch"] == {"best": None, "last": model["test"]["accuracy"]}
    store = Store(Path(config.output_dir) / "store")
    for path in store.root.glob("*/stage.json"):
        stage = json.loads(path.read_text())
        assert stage["spec"]["keep"] == "last"
        assert not [name for row in stage["history"] for name in row if name.startswith("val/")]
    assert "Nothing was selected: there is no validation part" in (folder / "report.md").read_text()
    assert "validation accuracy" not in capsys.readouterr().err


def test_test_accuracy_of_both_epochs_is_that_of_their_weights(tmp_path: Path) -> None:
    """The best epoch on validation is not the last: both count on test, in either `keep`."""
    high = ["optim=sgd", "optim.lr=2.0", "optim.nesterov=false", "lr_schedule=constant", "epochs=6"]
    words = [*TINY, "stages=[baseline]", "data.limit=100", *high, f"output_dir={tmp_path}"]
    found = {}
    for keep in ("best", "last"):
        config = check(composed(*words, f"keep={keep}", f"name={keep}"))
        folder = run(config, "a test")
        (found[keep],) = json.loads((folder / "report.json").read_text())["models"]
    val = found["best"]["val"]
    assert val["best"] > val["last"], "else the test shows nothing"
    both = {name: found[name]["test"]["accuracy"] for name in found}
    assert both["best"] != both["last"]
    assert found["best"]["test_by_epoch"] == found["last"]["test_by_epoch"] == both
    store = Store(tmp_path / "store")
    kept = {keep: store.root / model["stage"] for keep, model in found.items()}
    for one, other in (("best", "last"), ("last", "best")):
        weights = load_file(kept[one] / "weights.safetensors")
        others = load_file(kept[other] / OTHER_EPOCH)
        assert all(torch.equal(weights[name], others[name]) for name in weights)
    text = (folder / "report.md").read_text()
    last, best = (f"{100 * both[epoch]:.2f} %" for epoch in ("last", "best"))
    assert f"test accuracy {last} of the last epoch and {best} of the epoch best on" in text
    assert "Nothing was selected" not in text, "keep=last of the student alone"


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("train", ["data.val_fraction=1"], "data.val_fraction: found 1, accepted is a number fr"),
        (
            "train",
            ["data.val_fraction=0", "early_stopping=2"],
            "early_stopping: found 2, which val",
        ),
        (
            "train",
            ["data.val_fraction=0", "teacher.early_stopping=2"],
            "teacher.early_stopping: found 2, which validation labels decide; data.val_fraction=0",
        ),
        ("train", ["data.val_fraction=0", "data.val_labels=20"], "data.val_labels: found 20, but"),
        ("tune", ["data.val_fraction=0"], "data.val_fraction: found 0, but a search chooses on"),
        (
            "compare",
            ["data.val_fraction=0", "loss=kd,dkd"],
            "kd: data.val_fraction: found 0, but a search chooses on validation; accepted is a "
            "number between 0 and 1; n_trials=0 compares without a search\n",
        ),
    ],
)
def test_what_needs_validation_is_refused(
    command: str, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(command, *SMALL, *words, f"output_dir={tmp_path}") == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("store/*/stage.json"))


def test_a_sweep_without_validation_ranks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "data.val_fraction=0", "epochs=1", "stages=[baseline]", "seed=0,1"]
    assert exit_code("train", "-m", *words, f"output_dir={tmp_path}") == 0
    said = capsys.readouterr()
    assert "Not ranked, without a validation part" in said.out
    assert "seed=0: baseline done" in said.err
    assert exit_code("report", str(tmp_path)) == 0


FIXED = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))  # as in the code of Tian et al. 2020


@pytest.mark.parametrize(
    ("pair", "lr"),
    [
        ("resnet56_to_resnet20", 0.05),
        ("wrn40_2_to_wrn16_2", 0.05),
        ("vgg13_to_mobilenet_v2", 0.01),
        ("resnet50_to_mobilenet_v2", 0.01),
        ("resnet32x4_to_shufflenet_v1", 0.01),
        ("resnet32x4_to_shufflenet_v2", 0.01),
        ("wrn40_2_to_shufflenet_v1", 0.01),
    ],
)
def test_the_experiment_is_the_papers(pair: str, lr: float) -> None:
    loss = "kdsvd" if pair.startswith("wrn") else "at"  # the first has no published numbers
    words = ["experiment=cifar100_crd_protocol", f"model={pair}", f"loss={loss}"]
    config = check(composed(*words))
    assert (config.optim["lr"], config.teacher.optim["lr"]) == (lr, 0.05)
    assert (config.keep, config.teacher.keep, config.data["val_fraction"]) == ("last", "last", 0)
    assert (config.epochs, config.batch_size, config.teacher.epochs) == (240, 64, 240)
    assert config.drop_last is config.teacher.drop_last is False
    order = EpochOrder(50_000, config.batch_size, seed=0, drop_last=config.drop_last)
    assert len(order) == 782  # 50,000 / 64 = 781.25
    said = config.data["normalization"]
    assert (tuple(said["mean"]), tuple(said["std"])) == FIXED


def test_a_typed_rate_wins_over_the_papers() -> None:
    words = ["experiment=cifar100_crd_protocol", "model=vgg13_to_mobilenet_v2", "optim.lr=0.03"]
    assert check(composed(*words)).optim["lr"] == 0.03


class Colours(DataModule):
    """Sixty random images of three classes."""

    def read(self) -> Source:
        """Return the images."""
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (60, 3, 4, 4), generator=draw, dtype=torch.uint8)
        return Source(Images(pixels, torch.arange(60) % 3), None, ("a", "b", "c"))


def test_fixed_normalisation() -> None:
    mean, std = FIXED
    data = Colours(normalization={"mean": list(mean), "std": list(std)}, omit=["a"])
    assert data.statistics == FIXED
    assert data.for_stage("transfer").statistics == FIXED
    assert (data.key()["mean"], data.key()["std"]) == (list(mean), list(std))
    none, gray = {"mean": [0.5]}, {"mean": [0.5], "std": [1.0]}
    flat = {"mean": [0.0] * 3, "std": [0.0] * 3}
    for wrong in (none, gray, flat):
        with pytest.raises(UserError, match=r"data.normalization: found .* each of 3 channels"):
            Colours(normalization=wrong).statistics  # noqa: B018
