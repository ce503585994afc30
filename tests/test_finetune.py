"""A teacher from given weights: unchanged, fine-tuned, or only its last layer trained."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import TINY, composed, plan
from stopping import stop_before
from torch import Tensor, nn

from kd.config.construct import construct
from kd.config.schema import Config, check
from kd.data.base import DataModule
from kd.errors import StopRequest, UserError
from kd.files.store import StageResult, Store
from kd.nets.cnn import CNN
from kd.nets.head import freeze_body, head_of, head_tensors, still_body
from kd.nets.mlp import MLP
from kd.nets.resnet import ResNet
from kd.runs.run import run
from kd.shape import Shape
from kd.stages.complete import complete
from kd.stages.stage import Stage, make_stage
from kd.training.distiller import Distiller

Make = Callable[..., Config]
State = dict[str, Tensor]
RESNET = ("teacher=resnet18", "teacher.net.width=4")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights of a small ResNet, with batch-norm statistics as after training."""
    torch.manual_seed(7)
    net = ResNet(10, 18, 1, 8, width=4)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.1
            module.num_batches_tracked += 40
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def composed_and_checked(*overrides: str) -> Config:
        rest = [override for override in TINY if "teacher.net" not in override]
        return check(
            composed(*rest, "name=test", f"output_dir={tmp_path / 'out'}", *RESNET, *overrides)
        )

    return composed_and_checked


def staged(config: Config) -> tuple[Stage, DataModule]:
    data: DataModule = construct(config.data, "data")
    return make_stage(plan(config, "teacher"), config, data, {}), data


def done(config: Config) -> StageResult:
    stage, data = staged(config)
    return complete(stage, Store(Path(config.output_dir) / "store"), data)[0]


def moved(before: State, after: State) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("how", [[], ["teacher.finetune=none"]])
def test_as_loaded(how: list[str], make: Make, file: Path) -> None:
    result = done(make(f"teacher.path={file}", *how))
    assert result.record.epochs == 0
    assert moved(torch.load(file), result.weights()) == set()


def test_all_of_it(make: Make, file: Path) -> None:
    before = torch.load(file)
    result = done(make(f"teacher.path={file}", "teacher.finetune=all", "teacher.keep=last"))
    assert result.record.epochs == 2
    assert moved(before, result.weights()) == set(before)


@pytest.mark.parametrize(
    "how",
    [
        [],
        ["teacher.ema=0.8"],
        ["teacher.swa=0.5"],
        ["teacher.gradient_clip=0.5", "teacher.lr_schedule=cosine"],
        ["optim@teacher.optim=adamw"],
        ["teacher.precision=bf16-mixed"],
    ],
    ids=" ".join,
)
def test_the_head_alone_bit_for_bit(
    how: list[str], make: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, batch-norm statistics and counters of the body; weight decay and momentum are on."""
    modes: list[tuple[bool, ...]] = []
    step = Distiller.training_step

    def note(self: Distiller, *args: Any) -> dict[str, Any]:
        modes.append(
            tuple(module.training for name, module in self.net.named_modules() if name != "fc")
        )
        assert self.net.fc.training
        groups = self.trainer.optimizers[0].param_groups
        assert [tuple(p.shape) for group in groups for p in group["params"]] == [(10, 32), (10,)]
        return step(self, *args)

    monkeypatch.setattr(Distiller, "training_step", note)
    before = torch.load(file)
    result = done(make(f"teacher.path={file}", "teacher.finetune=head", "teacher.keep=last", *how))
    assert moved(before, result.weights()) == {"fc.weight", "fc.bias"}
    assert len(modes) == 8
    assert not any(any(each) for each in modes)


def of_norms(names: Iterable[str]) -> set[str]:
    """Weights, biases, statistics and counters of a ResNet's batch norms."""
    return {name for name in names if ".bn" in f".{name}" or ".downsample.1." in name}


@pytest.mark.parametrize("how", [[], ["teacher.ema=0.8"], ["optim@teacher.optim=adamw"]])
def test_frozen_norms(
    how: list[str], make: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay bit for bit, in evaluation mode; all else is trained, in train mode."""
    step = Distiller.training_step
    modes: set[tuple[bool, bool]] = set()

    def note(self: Distiller, *args: Any) -> dict[str, Any]:
        for module in self.net.modules():
            modes.add((isinstance(module, nn.BatchNorm2d), module.training))
        return step(self, *args)

    monkeypatch.setattr(Distiller, "training_step", note)
    before = torch.load(file)
    how = [f"teacher.path={file}", "teacher.finetune=frozen_norms", "teacher.keep=last", *how]
    after = done(make(*how)).weights()
    norms = of_norms(before)
    assert sum(name.endswith("running_var") for name in norms) == 20  # of a ResNet-18
    assert moved(before, after) == before.keys() - norms
    assert modes == {(True, False), (False, True)}


@pytest.mark.parametrize("part", ["head", "frozen_norms"])
def test_a_part_of_the_net_is_resumed(
    part: str, make: Make, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = (f"teacher.path={file}", f"teacher.finetune={part}", "teacher.epochs=3")
    whole = done(make(*how, f"output_dir={tmp_path / 'whole'}")).weights()
    with monkeypatch.context() as patch:
        stop_before(1, patch)
        with pytest.raises(StopRequest):
            done(make(*how))
    assert list((tmp_path / "out" / "store").glob("*.partial/last.ckpt"))
    resumed = done(make(*how)).weights()
    assert moved(whole, resumed) == set()
    before = torch.load(file)
    trained = {"fc.weight", "fc.bias"} if part == "head" else before.keys() - of_norms(before)
    assert moved(before, resumed) == trained


def test_another_number_of_classes(make: Make, tmp_path: Path) -> None:
    torch.manual_seed(7)
    torch.save(ResNet(7, 18, 1, 8, width=4).state_dict(), tmp_path / "seven.pt")
    before = torch.load(tmp_path / "seven.pt")
    path = f"teacher.path={tmp_path / 'seven.pt'}"
    after = done(make(path, "teacher.finetune=head")).weights()
    assert after["fc.weight"].shape == (10, 32)
    assert all(
        torch.equal(before[name], after[name]) for name in before if not name.startswith("fc.")
    )
    with pytest.raises(UserError, match="for 7 classes, the data has 10"):
        done(make(path))
    with pytest.raises(UserError, match="for 7 classes, the data has 10"):
        done(make(path, "teacher.finetune=all", "teacher.epochs=0"))


def test_a_fresh_net(make: Make) -> None:
    assert done(make("teacher.finetune=none")).record.epochs == 0
    start = done(make("teacher.epochs=0")).weights()
    assert moved(start, done(make("teacher.finetune=none")).weights()) == set()
    assert moved(start, done(make("teacher.finetune=head", "teacher.keep=last")).weights()) == {
        "fc.weight",
        "fc.bias",
    }
    assert moved(start, done(make("teacher.finetune=none", "teacher.seed=1")).weights())


def test_keys(make: Make, file: Path, tmp_path: Path) -> None:
    path = f"teacher.path={file}"

    def key(*overrides: str) -> str:
        return staged(make(*overrides))[0].key

    distinct = [
        (), (path,), (path, "teacher.finetune=all"), (path, "teacher.finetune=head"),
        (path, "teacher.finetune=frozen_norms"), (path, "teacher.match=order"),
        ("teacher.finetune=head",),
        (path, "teacher.finetune=all", "teacher.optim.lr=0.01"),
        (path, "teacher.normalization={mean: [0.5], std: [0.5]}"),
    ]  # fmt: skip
    assert len({key(*each) for each in distinct}) == len(distinct)
    assert key() == key("teacher.finetune=all")
    assert key(path) == key(path, "teacher.finetune=none") == key(path, "teacher.match=name")
    assert key(path) == key(path, "teacher.optim.lr=0.01", "teacher.epochs=7", "teacher.seed=3")
    copied = tmp_path / "copy.pth"
    copied.write_bytes(file.read_bytes())
    assert key(path) == key(f"teacher.path={copied}"), "its content counts, not its name"
    state = torch.load(file)
    torch.save(state | {"fc.bias": state["fc.bias"] + 1}, copied)
    assert key(path) != key(f"teacher.path={copied}")


def test_a_run_with_a_fine_tuned_teacher(make: Make, file: Path) -> None:
    folder = run(make(f"teacher.path={file}", "teacher.finetune=head", "teacher.epochs=1"), "")
    assert (folder / "report.md").exists()


class NoHead(nn.Module):
    """Net that ends in a batch norm."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(64, num_classes), nn.BatchNorm1d(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(x.flatten(1)))


def test_a_net_without_such_a_layer_is_refused_before_anything_is_trained(
    make: Make, tmp_path: Path
) -> None:
    config = make("teacher.finetune=head")
    node = {"_target_": f"{NoHead.__module__}.NoHead"}
    config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"net": node})})
    with pytest.raises(
        UserError, match=r"teacher\.finetune: head cannot be trained alone: NoHead does not end in"
    ):
        run(config, "")
    assert not list(Path(config.output_dir).glob("store/*"))


@pytest.mark.parametrize(
    ("net", "shape", "head"),
    [
        (CNN(10, 1), Shape(1, 8, 10), "fc"),
        (ResNet(10, 18, 1, 8, width=2), Shape(1, 8, 10), "fc"),
        (MLP(10, 1, 8, [10, 10]), Shape(1, 8, 10), "fc"),  # its hidden layers have ten outputs too
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Shape(1, 8, 10), "1"),
    ],
)
def test_the_head(net: nn.Module, shape: Shape, head: str) -> None:
    net.train()
    before = copy.deepcopy(net.state_dict())
    assert list(head_of(net, shape)) == [head]
    assert head_tensors(net, shape) == [f"{head}.weight", f"{head}.bias"]
    assert moved(before, net.state_dict()) == set()
    assert all(module.training for module in net.modules())
    freeze_body(net, shape)
    still_body(net)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        f"{head}.weight",
        f"{head}.bias",
    }
    assert {name for name, module in net.named_modules() if module.training} == {head}


@pytest.mark.parametrize("value", ["last", "true", "1"])
def test_a_word_that_finetune_does_not_know(value: str, make: Make) -> None:
    with pytest.raises(
        UserError, match=r"teacher\.finetune: found .*'all', 'head', 'frozen_norms' or 'none'"
    ):
        make(f"teacher.finetune={value}")
