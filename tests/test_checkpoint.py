"""Teacher weights from a file: every format, every wrapper's prefix, every mismatch."""

import argparse
import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import TINY, composed, plan
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd.config.construct import construct
from kd.config.schema import Config, check
from kd.errors import UserError
from kd.files.header import header_of, weights_file
from kd.files.state_dicts import read_weights
from kd.files.store import StageResult, Store
from kd.nets.mlp import MLP
from kd.nets.resnet import ResNet
from kd.nets.vgg import VGG
from kd.nets.weights import load_weights
from kd.nets.wide_resnet import WideResNet
from kd.runs.preflight import preflight
from kd.runs.run import run
from kd.stages.chain import chain_of
from kd.stages.complete import complete
from kd.stages.result import load_net
from kd.stages.stage import make_stage

Make = Callable[..., Config]
State = dict[str, Tensor]


def net(seed: int = 0, classes: int = 10) -> ResNet:
    """Convolutions, batch norm, and counters among the tensors."""
    torch.manual_seed(seed)
    made = ResNet(classes, 18, 1, 8, width=2)
    made.bn1.running_mean += 0.5
    return made


def fresh() -> ResNet:
    return net(seed=1)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def save(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


STATE = net().state_dict()
FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "safetensors": ("a.safetensors", lambda path: save_file(STATE, path)),
    "plain": ("a.pt", save(STATE)),
    "plain pth": ("a.pth", save(dict(STATE))),
    "before zip": (
        "a.pth",
        lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    ),
    "state_dict": ("a.pt", save({"epoch": 3, "state_dict": STATE, "optimizer": {"lr": 0.1}})),
    "model": ("a.pt", save({"model": STATE, "epoch": 3})),
    "net": ("a.pth", save({"net": STATE, "acc": 91.2})),
    "model_state_dict": ("a.pt", save({"model_state_dict": STATE})),
    "nested": ("a.pt", save({"model": {"state_dict": STATE, "args": {"depth": 18}}})),
    "Lightning": (
        "a.ckpt",
        save(
            {
                "state_dict": {f"model.{k}": v for k, v in STATE.items()}
                | {"criterion.weight": torch.ones(10)},
                "pytorch-lightning_version": "2.6.6",
                "callbacks": {},
                "optimizer_states": [{"state": {}, "param_groups": []}],
                "hyper_parameters": {"lr": 0.1},
            }
        ),
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str, tmp_path: Path) -> None:
    name, write = FORMATS[kind]
    write(tmp_path / name)
    found = fresh()
    assert not same(found.state_dict(), STATE)
    load_weights(found, tmp_path / name, "teacher.path")
    assert same(found.state_dict(), STATE)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.",
        "net._orig_mod.",
        "model.module.", "model.net.", "module.model._orig_mod.", "backbone.", "encoder.",
        "model.backbone.",
        "module.encoder_q.", "student.net.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside other tensors"])
def test_prefixes(
    prefix: str, beside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = (
        {"objective.temperature": torch.ones(1), "teacher.fc.weight": torch.ones(2)}
        if beside
        else {}
    )
    torch.save({prefix + k: v for k, v in STATE.items()} | other, tmp_path / "a.pt")
    found = fresh()
    load_weights(found, tmp_path / "a.pt", "teacher.path")
    assert same(found.state_dict(), STATE)
    said = capsys.readouterr().err
    assert f"a.pt are taken without their prefix '{prefix}'" in said
    assert ("objective.temperature, teacher.fc.weight" in said) == beside


def test_a_name_that_fits_keeps_what_looks_like_a_prefix(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 3)

    torch.save(Wrapped().state_dict(), tmp_path / "a.pt")
    wrapped = Wrapped()
    load_weights(wrapped, tmp_path / "a.pt", "teacher.path")
    assert same(wrapped.state_dict(), torch.load(tmp_path / "a.pt"))


OTHER = net(seed=2).state_dict()
PARAMETERS = {name for name, _ in net().named_parameters()}


def under(prefix: str, state: State) -> State:
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize(
    ("content", "which", "raw"),
    [
        ({"state_dict_ema": STATE}, [None, "ema"], False),
        ({"state_dict": OTHER, "state_dict_ema": STATE, "epoch": 3}, [None, "ema"], True),  # timm
        ({"model": OTHER, "model_ema": under("module.", STATE)}, [None, "model_ema"], True),
        (under("ema_model.", STATE) | under("online_model.", OTHER), [None, "ema_model"], True),
        (under("module.", STATE) | {"n_averaged": torch.ones(1)}, [None, "ema"], False),  # torch
        # Lightning
        (
            {
                "state_dict": under("net.", STATE),
                "current_model_state": under("net.", OTHER),
                "averaging_state": {"n_averaged": torch.ones(1)},
            },
            [None, "ema"],
            True,
        ),
        # Many averages cover only parameters; the buffers are then the trained net's.
        (
            {
                "ema": {k: STATE[k] for k in PARAMETERS},
                "model": {**OTHER, **{k: v for k, v in STATE.items() if k not in PARAMETERS}},
            },
            [None],
            False,
        ),
    ],
    ids=["alone", "timm", "torchvision", "ema-pytorch", "torch", "Lightning", "parameters"],
)
def test_averaged_weights_are_taken_and_named(
    content: Any, which: list[str | None], raw: bool, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    torch.save(content, tmp_path / "a.pt")
    for each in which:
        found = fresh()
        load_weights(found, tmp_path / "a.pt", "teacher.path", which=each)
        assert same(found.state_dict(), STATE)
        assert "took the averaged weights (EMA) in " in capsys.readouterr().err
    if raw:
        load_weights(found, tmp_path / "a.pt", "teacher.path", which="raw")
        assert same(found.state_dict(), OTHER)
    elif which != [None]:
        with pytest.raises(UserError, match=r"teacher\.state: found 'raw'; .*a\.pt has ema"):
            load_weights(found, tmp_path / "a.pt", "teacher.path", which="raw")


def test_one_of_several_nets_in_a_file_must_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt"
    torch.save(under("encoder_q.", STATE) | under("encoder_k.", OTHER), path)
    with pytest.raises(UserError, match=r"encoder_k, encoder_q; choose one with teacher\.state="):
        load_weights(fresh(), path, "teacher.path")
    found = fresh()
    load_weights(found, path, "teacher.path", which="encoder_q")
    assert same(found.state_dict(), STATE)
    with pytest.raises(UserError, match=r"found 'encoder_g'; .* did you mean"):
        load_weights(found, path, "teacher.path", which="encoder_g")
    capsys.readouterr()
    torch.save({"teacher": OTHER, "state_dict": STATE}, path)  # the plain key is meant
    load_weights(fresh(), path, "teacher.path")
    assert (
        "took the weights in state_dict of a.pt; teacher would fit too" in capsys.readouterr().err
    )


def test_what_is_no_tensor_beside_tensors_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({**STATE, "epoch": 3, "scheduler": None}, tmp_path / "a.pt")
    found = fresh()
    load_weights(found, tmp_path / "a.pt", "teacher.path")
    assert same(found.state_dict(), STATE)
    assert "2 entries of a.pt are none of the net's and are left out: epoch, scheduler" in (
        capsys.readouterr().err
    )


def test_weights_without_a_last_layer_start_it_afresh_where_training_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        {f"backbone.{k}": v for k, v in STATE.items() if not k.startswith("fc.")},
        tmp_path / "a.pt",
    )
    found = fresh()
    own = copy.deepcopy(found.fc.state_dict())
    load_weights(found, tmp_path / "a.pt", "teacher.path", head=["fc.weight", "fc.bias"])
    assert same(found.state_dict(), STATE | under("fc.", own))
    assert "has no last layer; fc.weight, fc.bias start afresh" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"missing: fc\.weight, fc\.bias"):
        load_weights(fresh(), tmp_path / "a.pt", "teacher.path")


def as_repdistiller_names(name: str) -> str:
    """Names of the same tensors in models/wrn.py, vgg.py and resnetv2.py of
    HobbitLong/RepDistiller.
    """
    if name.startswith("block") and name[7:].startswith(
        ("0.bn", "0.conv", "0.sh", "1.bn", "1.conv")
    ):
        return name.replace(".", ".layer.", 1).replace("shortcut", "convShortcut")
    if name.startswith("layer"):
        return name.replace("downsample", "shortcut")
    if name.startswith("block"):
        return f"block{int(name[5]) - 1}{name[6:]}"
    return name


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (lambda: WideResNet(10, 16, 2), {"bn.": "bn1."}),
        (lambda: VGG(10, 11, width=4), {"fc.": "classifier."}),
        (lambda: ResNet(10, 50, 3, 32, width=4), {"fc.": "linear."}),
    ],
    ids=["wrn", "vgg", "resnet50"],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_repdistillers_names(
    make: Callable[[], nn.Module], others: dict[str, str], prefix: str, tmp_path: Path
) -> None:
    theirs = make().state_dict()

    def renamed(name: str) -> str:
        for ours, other in others.items():
            if name.startswith(ours):
                return other + name.removeprefix(ours)
        return as_repdistiller_names(name)

    torch.save({"model": {prefix + renamed(k): v for k, v in theirs.items()}}, tmp_path / "a.pt")
    found = make()
    load_weights(found, tmp_path / "a.pt", "teacher.path")
    assert same(found.state_dict(), theirs)
    torch.save(theirs, tmp_path / "a.pt")  # and our own, some of which mean another layer there
    found = make()
    load_weights(found, tmp_path / "a.pt", "teacher.path")
    assert same(found.state_dict(), theirs)


def test_counters_of_batch_norm_may_be_absent(tmp_path: Path) -> None:
    torch.save(
        {k: v for k, v in STATE.items() if not k.endswith("num_batches_tracked")}, tmp_path / "a.pt"
    )
    found = fresh()
    load_weights(found, tmp_path / "a.pt", "teacher.path")
    assert same(found.state_dict(), STATE)


def refused(state: State, tmp_path: Path) -> str:
    torch.save(state, tmp_path / "a.pt")
    target = fresh()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(UserError) as error:
        load_weights(target, tmp_path / "a.pt", "teacher.path")
    assert same(target.state_dict(), before), "nothing of it may have been loaded"
    return str(error.value)


def renamed(state: State) -> State:
    """The same tensors in the same order under names of another project."""
    return {
        f"t{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(state.items())
    }


@pytest.mark.slow
def test_other_names_in_the_net_s_order(tmp_path: Path, capsys: Any) -> None:
    without_counters = {k: v for k, v in STATE.items() if not k.endswith("num_batches_tracked")}
    for state in (renamed(STATE), {"state_dict": renamed(without_counters)}):
        torch.save(state, tmp_path / "a.pt")
        found = fresh()
        load_weights(found, tmp_path / "a.pt", "teacher.path", by_order=True)
        assert same(found.state_dict(), {**STATE, **counters(found)})
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "tensors of a.pt are taken in order, t0.weight as conv1.weight first" in said
    cut = dict(list(renamed(STATE).items())[:-2])  # a body without its last layer
    for state, classes in ((renamed(net(classes=7).state_dict()), 7), (cut, 0)):
        torch.save(state, tmp_path / "a.pt")
        found = fresh()
        load_weights(
            found, tmp_path / "a.pt", "teacher.path", ["fc.weight", "fc.bias"], by_order=True
        )
        assert torch.equal(found.fc.weight, fresh().fc.weight)
        assert torch.equal(found.bn1.running_mean, STATE["bn1.running_mean"])
        words = f"is for {classes} classes" if classes else "has no last layer"
        assert words in capsys.readouterr().err


def counters(module: nn.Module) -> State:
    return {k: v for k, v in module.state_dict().items() if k.endswith("num_batches_tracked")}


def swapped(state: State) -> State:
    """Mean and variance of the first batch norm in the other order: their shapes are equal."""
    names = list(state)
    a, b = names.index("bn1.running_mean"), names.index("bn1.running_var")
    names[a], names[b] = names[b], names[a]
    return {name: state[name] for name in names}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (dict(list(STATE.items())[:9]), r"the file has \d+ tensors and the net \d+.* nothing more"),
        ({**STATE, "more": torch.zeros(1)}, r"meets nothing more in the net"),
        (net(classes=7).state_dict(), r"the file is for 7 classes, the data has 10"),
        (swapped(STATE), r"the first 3 fit in order, then bn1.running_var \[2\] in the file meets"),
    ],
    ids=["fewer", "more", "classes", "kinds"],
)
def test_another_order_is_refused_with_counts(state: State, words: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match=words):
        load_weights(fresh(), tmp_path / "a.pt", "teacher.path", by_order=True)
    save_file(STATE, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"teacher.match: .* lists its tensors by name; accepted"):
        load_weights(fresh(), tmp_path / "a.safetensors", "teacher.path", by_order=True)


def test_missing_unexpected_and_wrongly_shaped_in_one_message(tmp_path: Path) -> None:
    state = dict(STATE)
    del state["fc.weight"], state["fc.bias"]
    state |= {"head.weight": torch.ones(1), "conv1.weight": torch.zeros(4, 1, 3, 3, 1)}
    said = refused(state, tmp_path)
    lines = said.splitlines()
    assert lines[0].startswith("teacher.path: the weights in ")
    assert lines[1:4] == [
        "  missing: fc.weight, fc.bias",
        "  unexpected: head.weight",
        "  of another shape: conv1.weight [4, 1, 3, 3, 1], the net has [2, 1, 3, 3]",
    ]
    assert (
        lines[4] == f"  the net is ResNet with {len(STATE)} tensors; the file has {len(STATE) - 1}"
    )
    assert "classes" not in said


def test_the_first_ten_and_how_many_more(tmp_path: Path) -> None:
    said = refused({f"{k}.gone": v for k, v in STATE.items()}, tmp_path)
    tracked = sum(k.endswith("num_batches_tracked") for k in STATE)
    missing, unexpected = said.splitlines()[1:3]
    assert missing.count(", ") == unexpected.count(", ") == 9
    assert missing.endswith(f" and {len(STATE) - tracked - 10} more")
    assert unexpected.endswith(f" and {len(STATE) - 10} more")


def test_wrapped_and_of_another_width(tmp_path: Path) -> None:
    said = refused(
        {f"module.{k}": v for k, v in ResNet(10, 18, 1, 8, width=3).state_dict().items()}, tmp_path
    )
    assert "missing" not in said
    assert "conv1.weight [3, 1, 3, 3], the net has [2, 1, 3, 3]" in said
    assert "classes" not in said


@pytest.mark.parametrize("where", ["fc.weight", "fc.bias"])
def test_another_number_of_classes_is_told(where: str, tmp_path: Path) -> None:
    state = net(classes=7).state_dict()
    said = refused({**STATE, where: state[where]}, tmp_path)
    assert "the file is for 7 classes, the data has 10; teacher.finetune=all trains it" in said


def test_the_last_layer_may_start_afresh_where_training_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = net(classes=7).state_dict()
    torch.save(state, tmp_path / "a.pt")
    found = fresh()
    own = copy.deepcopy(found.fc.state_dict())
    load_weights(found, tmp_path / "a.pt", "teacher.path", head=["fc.weight", "fc.bias"])
    assert same(found.fc.state_dict(), own)
    assert all(
        torch.equal(v, found.state_dict()[k]) for k, v in state.items() if not k.startswith("fc.")
    )
    assert "is for 7 classes; fc.weight, fc.bias start afresh" in capsys.readouterr().err


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_needs_more_is_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    configured = {"state_dict": STATE, "hyper_parameters": OmegaConf.create({"lr": 0.1})}
    for name, content, needed, convert in (
        (
            "a.ckpt",
            configured,
            "omegaconf.dictconfig.DictConfig",
            "torch.save(x['state_dict'], 'weights.pt')",
        ),
        (
            "b.pt",
            nn.Linear(2, 2),
            "torch.nn.modules.linear.Linear",
            "torch.save(x.state_dict(), 'weights.pt')",
        ),
        (
            "c.pt",
            {"model": STATE, "args": argparse.Namespace()},
            "argparse.Namespace",
            "torch.save(x['model'], 'weights.pt')",
        ),
        (
            "e.pt",
            {"epoch": 3, "model": nn.Linear(2, 2)},
            "torch.nn.modules.linear.Linear",
            "torch.save(x['model'].state_dict(), 'weights.pt')",
        ),
        (
            "f.pt",
            {"generator": dict(STATE), "args": argparse.Namespace()},
            "argparse.Namespace",
            "torch.save(x['generator'], 'weights.pt')",
        ),
        ("d.pt", {"model": STATE, "x": Evil(tmp_path / "owned")}, "mkdir", "refused"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError) as error:
            read_weights(tmp_path / name, "teacher.path")
        for word in ("teacher.path", name, needed, "refused", "weights_only=False", convert):
            assert word in str(error.value), (name, word)
    assert not (tmp_path / "owned").exists()


def test_the_way_to_convert_works(tmp_path: Path) -> None:
    configured = {
        "state_dict": {f"net.{k}": v for k, v in STATE.items()},
        "hyper_parameters": OmegaConf.create({"lr": 1}),
    }
    torch.save(configured, tmp_path / "a.ckpt")
    with pytest.raises(UserError) as error:
        read_weights(tmp_path / "a.ckpt", "teacher.path")
    code = str(error.value).partition("convert it once: ")[2]
    code = code.replace("PATH", repr(str(tmp_path / "a.ckpt"))).replace(
        "weights.pt", str(tmp_path / "weights.pt")
    )
    exec(code, {})
    found = fresh()
    load_weights(found, tmp_path / "weights.pt", "teacher.path")
    assert same(found.state_dict(), STATE)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pt", b"", "empty"),
        ("a.pt", b"hello world\n", "no weights file"),
        ("a.pt", b"<html>404</html>", "no weights file"),
        ("a.pt", bytes(range(256)), "no weights file"),
        ("a.pt", b"PK\x03\x04aaaa", "no weights file"),
        ("a.pt", pickle.dumps({"a": 1}), "no weights file"),
        ("a.safetensors", b"", "no weights file"),
        ("a.safetensors", b"\xff" * 64, "no weights file"),
        ("a.safetensors", b"hello world, this is not it", "no weights file"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_what_is_no_weights_file(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert header_of(tmp_path / name) is None
    with pytest.raises(UserError) as error:
        read_weights(tmp_path / name, "teacher.path")
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_a_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save(STATE, path) if suffix == ".pt" else save_file(STATE, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="no weights file, or a damaged one"):
        read_weights(path, "teacher.path")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"epoch": 3, "optimizer": {}},
            ["keys epoch, optimizer", "state_dict, model_state_dict, model, net"],
        ),
        ({"state_dict": {"a": 1}}, ["keys state_dict"]),
        ({"model": {}}, ["keys model"]),
        ([torch.ones(1)], ["a list"]),
        (torch.ones(1), ["a Tensor"]),
    ],
)
def test_a_file_without_a_state_dict(content: Any, words: list[str], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds no state dict") as error:
        read_weights(tmp_path / "a.pt", "teacher.path")
    for word in words:
        assert word in str(error.value)


def test_no_file_and_a_folder_that_is_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        weights_file(tmp_path / "a.pt", "teacher.path")
    with pytest.raises(UserError, match=r"has no student\.safetensors"):
        weights_file(tmp_path, "teacher.path")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The normalisation of a run whose student has its own."""
    out = tmp_path_factory.mktemp("first")
    return run(
        check(composed(*TINY, "name=test", f"output_dir={out}", "stages=[teacher,distill]")), ""
    )


class TestRunFolder:
    """A run's student as another run's teacher."""

    def teacher(self, make_config: Make, *overrides: str) -> tuple[StageResult, Config]:
        config = check(
            composed(
                *[o for o in TINY if ".net." not in o],
                "name=t",
                f"output_dir={make_config().output_dir}",
                *overrides,
            )
        )
        data = construct(config.data, "data")
        stage = make_stage(plan(config, "teacher"), config, data, {})
        return complete(stage, Store(Path(config.output_dir) / "store"), data)[0], config

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["", "student.safetensors"])
    def test_the_file_names_its_net(self, name: str, folder: Path, make_config: Make) -> None:
        done, config = self.teacher(
            make_config, "teacher=checkpoint", f"teacher.path={folder / name}"
        )
        assert config.teacher.net == {"_target_": "kd.nets.mlp.MLP", "hidden": [8]}
        assert same(load_net(done).state_dict(), load_file(folder / "student.safetensors"))
        assert done.record.epochs == 0

    @pytest.mark.slow
    def test_the_net_given_agrees(self, folder: Path, make_config: Make) -> None:
        done, _ = self.teacher(
            make_config, "teacher=mlp", "teacher.net.hidden=[8]", f"teacher.path={folder}"
        )
        assert same(load_net(done).state_dict(), load_file(folder / "student.safetensors"))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["teacher=mlp", "teacher.net.hidden=[9]"], ["hidden [8] where teacher.net has [9]"]),
            (
                ["teacher=resnet18"],
                ["_target_ 'kd.nets.mlp.MLP' where teacher.net has 'kd.nets.resnet.ResNet'"],
            ),
        ],
    )
    def test_the_net_given_is_another(
        self, overrides: list[str], words: list[str], folder: Path, make_config: Make
    ) -> None:
        with pytest.raises(UserError) as error:
            self.teacher(make_config, *overrides, f"teacher.path={folder}")
        for word in ["teacher.path", str(folder), "teacher=checkpoint", *words]:
            assert word in str(error.value)

    @pytest.mark.slow
    def test_its_normalisation_stays(self, folder: Path, make_config: Make) -> None:
        """On other data the net gets the normalisation of the run that trained it."""
        header = header_of(folder / "student.safetensors")
        assert header
        other = "data.limit=150"
        done, config = self.teacher(
            make_config, "teacher=checkpoint", f"teacher.path={folder}", other
        )
        mean, std = construct(config.data, "data").statistics
        assert (list(mean), list(std)) != (header["mean"], header["std"])
        assert done.record.normalization == (header["mean"], header["std"])
        assert load_net(done).normalization == (tuple(header["mean"]), tuple(header["std"]))
        said = "teacher.normalization={mean: [0.5], std: [0.25]}"
        done, _ = self.teacher(make_config, "teacher=checkpoint", f"teacher.path={folder}", said)
        assert done.record.normalization == ([0.5], [0.25])

    def with_header(self, folder: Path, tmp_path: Path, **changes: Any) -> Path:
        path = tmp_path / "changed.safetensors"
        header = {**(header_of(folder / "student.safetensors") or {}), **changes}
        save_file(load_file(folder / "student.safetensors"), path, {"kd": json.dumps(header)})
        return path

    @pytest.mark.slow
    def test_classes_in_another_order_are_mapped(
        self, folder: Path, tmp_path: Path, make_config: Make, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = load_file(folder / "student.safetensors")
        path = self.with_header(folder, tmp_path, classes=list("1023456789"))
        done, _ = self.teacher(make_config, "teacher=checkpoint", f"teacher.path={path}")
        order = [1, 0, *range(2, 10)]
        head = {name: whole[name][order] for name in whole if len(whole[name]) == 10}
        assert sorted(head) == ["fc.bias", "fc.weight"]
        assert same(load_net(done).state_dict(), {**whole, **head})
        path = self.with_header(folder, tmp_path, classes=list("abcdefghij"))
        self.teacher(make_config, "teacher=checkpoint", f"teacher.path={path}")
        assert (
            "calls its classes a, b, c, d, e ...; the data calls them 0, 1, 2, 3, 4 ..."
            in capsys.readouterr().err
        )

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "target", ["builtins.print", "torch.hub.load", "kd.runs.run.run", "mine.nets.Big", None]
    )
    def test_a_file_may_not_choose_what_is_called(
        self, target: str | None, folder: Path, tmp_path: Path, make_config: Make
    ) -> None:
        path = self.with_header(folder, tmp_path, net={"_target_": target})
        with pytest.raises(
            UserError, match=r"teacher\.net: .* may choose among the nets in kd\.nets only"
        ):
            self.teacher(make_config, "teacher=checkpoint", f"teacher.path={path}")

    @pytest.mark.slow
    def test_a_file_that_names_no_net(
        self, folder: Path, tmp_path: Path, make_config: Make
    ) -> None:
        save_file(load_file(folder / "student.safetensors"), tmp_path / "plain.safetensors")
        with pytest.raises(UserError, match=r"teacher\.net: .*does not name its net"):
            self.teacher(
                make_config, "teacher=checkpoint", f"teacher.path={tmp_path / 'plain.safetensors'}"
            )
        net = "teacher.net={_target_: kd.nets.mlp.MLP, hidden: [8]}"
        done, _ = self.teacher(
            make_config, "teacher=checkpoint", f"teacher.path={tmp_path / 'plain.safetensors'}", net
        )
        assert same(load_net(done).state_dict(), load_file(folder / "student.safetensors"))

    def test_a_path_must_be_given(self) -> None:
        with pytest.raises(UserError, match=r"teacher\.path: found None, needed is the file"):
            check(composed("teacher=checkpoint"))


MINE = """
from torch import nn


class Big(nn.Module):
    def __init__(self, num_classes, in_channels, image_size, width=12):
        super().__init__()
        inputs = in_channels * image_size**2
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.body(x))
"""


@pytest.mark.slow
def test_a_module_of_ones_own_from_a_file(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_nets.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    from my_own_nets import Big  # type: ignore[import-not-found]

    big = Big(10, 1, 8, width=5)
    torch.save({"model": nn.DataParallel(big).state_dict()}, tmp_path / "big.pth")
    folder = run(
        make_config(
            "~teacher.net",
            "+teacher.net={_target_: my_own_nets.Big, width: 5}",
            f"teacher.path={tmp_path / 'big.pth'}",
        ),
        "",
    )
    teacher = json.loads((folder / "report.json").read_text())["models"][0]
    assert (teacher["net"], teacher["epochs"]) == ("Big(width=5)", 0)
    (stored,) = (folder.parents[1] / "store").glob(f"{teacher['stage']}/weights.safetensors")
    assert same(load_file(stored), big.state_dict())


def test_mlp_and_resnet_do_not_share_names() -> None:
    assert not MLP(10, 1, 8).state_dict().keys() & (STATE.keys() - {"fc.weight", "fc.bias"})


@pytest.mark.slow
def test_no_batch_is_needed_of_a_teacher_that_is_not_trained(
    make_config: Make, tmp_path: Path
) -> None:
    torch.save(MLP(10, 1, 8, [16]).state_dict(), tmp_path / "teacher.pth")
    given = make_config("teacher.batch_size=100000", f"teacher.path={tmp_path / 'teacher.pth'}")
    data = construct(given.data, "data")
    preflight(chain_of(given), given, data)
    trained = make_config("teacher.batch_size=100000")
    with pytest.raises(UserError, match=r"teacher\.batch_size: 100000 leaves no batch"):
        preflight(chain_of(trained), trained, data)
