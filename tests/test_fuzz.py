"""Random input is accepted or refused with a message, never with a traceback.

`KD_FUZZ=10000 pytest tests/test_fuzz.py` tries that many cases of each; the default is a few.
"""

import contextlib
import copy
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import TINY, composed
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from kd.command import CONF, explain, of_hydra, typed_keys
from kd.config.construct import construct
from kd.config.schema import check
from kd.data.digits import Digits
from kd.errors import UserError
from kd.nets.build import build_net
from kd.nets.mlp import MLP
from kd.nets.weights import load_weights
from kd.runs.reader import open_run, read_student
from kd.shape import Shape
from kd.stages.chain import chain_of
from kd.stages.try_out import try_out
from kd.summary import write_summary
from kd.training.optim import make_optimizer

EXAMPLES = int(os.environ.get("KD_FUZZ", "20"))
FEW = max(1, EXAMPLES // 10)  # of what takes a third of a second

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="KD_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)

# Wrong values for a config or file.
WORDS = st.sampled_from(
    [
        "",
        "x",
        "null",
        "cpu",
        "..",
        "a/b",
        "\x00",
        "\x1b[31m",
        "é\u202e",
        "$x_{",
        "<b>",
        "${oc.env:HOME}",
        "${",
        "???",
    ]
)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, 2**64, 10**30, -(2**63)]),
    st.floats(allow_nan=True, allow_infinity=True),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=6))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["_target_", "schedule", "start", "end", "of", "net", "x", ""]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
TARGETS = st.sampled_from(
    (
        *(
            "kd.nets.mlp.MLP",
            "kd.nets.cnn.CNN",
            "kd.losses.dkd.dkd_loss",
            "kd.data.digits.Digits",
            "kd",
            "..",
            "math.sqrt",
        ),
        *(
            "torch.nn.Linear",
            "torch.nn.Module",
            "torch.optim.SGD",
            "builtins.dict",
            "kd.config.schedules.linear",
            "not.there",
        ),
    )
)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Check that a user would see no traceback."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(UserError):
        yield


def paths(node: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the path to something in nested containers."""
    if prefix:
        yield prefix
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in items:
        yield from paths(value, (*prefix, key))


def changed(
    node: Any, draw: Callable[..., Any], times: int, values: st.SearchStrategy[Any] = VALUES
) -> Any:
    """Copy with some values changed, removed or renamed."""
    node = copy.deepcopy(node)
    for _ in range(times):
        *above, last = draw(st.sampled_from(list(paths(node))))
        holder = node
        for key in above:
            holder = holder[key]
        what = draw(
            st.sampled_from(["replace", "replace", "replace", "remove", "rename", "target"])
        )
        if what == "replace":
            holder[last] = draw(values)
        elif what == "target":
            holder[last] = {
                "_target_": draw(TARGETS),
                **draw(st.dictionaries(st.text(max_size=3), LEAVES, max_size=2)),
            }
        else:
            value = holder.pop(last)
            if what == "rename" and isinstance(holder, dict):
                holder[draw(st.text(max_size=5))] = value
        if not node:
            break
    return node


# The composition


@cache
def plain() -> dict[str, Any]:
    """Compose a config and resolve its references, except those of its name."""
    cfg = composed(*TINY, "name=fuzz", "output_dir=out", "data.cache=off")
    found = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@cache
def few_digits() -> Digits:
    data = Digits(test_fraction=0.25, limit=50, augment={})
    assert data.split
    return data


@pytest.mark.slow
@fuzzed
@given(st.data())
def test_any_value_in_a_config(drawn: st.DataObject) -> None:
    """Run the checks, the chain, and build the parts of each stage."""
    found = changed(plain(), drawn.draw, drawn.draw(st.integers(1, 3)))
    try:
        cfg = DictConfig(found)
    except OmegaConfBaseException:
        return  # Hydra would not have composed it
    with told():
        config = check(cfg)
        for plan in chain_of(config):
            if any(isinstance(value, int) and value > 5000 for value in numbers(plan.net)):
                continue  # a net that would take all memory
            try_out(plan, few_digits())
            net = build_net(plan.net, few_digits().shape, plan.where)
            make_optimizer(net, 2, optim=plan.recipe.optim, schedule=plan.recipe.lr_schedule)
        construct(config.data, "data")


def numbers(node: Any) -> Iterator[Any]:
    if isinstance(node, (dict, list)):
        for each in node.values() if isinstance(node, dict) else node:
            yield from numbers(each)
    else:
        yield node


KEYS = [
    "alpha",
    "temperature",
    "loss",
    "data",
    "teacher",
    "student",
    "optim.lr",
    "epochs",
    "stages",
    "name",
    "trainer",
]
KEYS += [
    "data.limit",
    "teacher.net.hidden",
    "loss.terms.kd.weight",
    "hydra.run.dir",
    "model",
    "experiment",
    "sweep",
    "x",
]
OVERRIDES = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.one_of(st.sampled_from(KEYS), st.text("abc._/@:", max_size=5)),
    st.sampled_from(["=", "=", "=", "", "==", ":"]),
    st.one_of(
        st.sampled_from(
            [
                "kd",
                "dkd",
                "digits",
                "mlp",
                "[",
                "{a:",
                "1,2",
                "range(1,3)",
                "choice(a,b)",
                "null",
                "${alpha}",
            ]
        ),
        LEAVES.map(str),
        st.text("${}[](),:='\" ab1.-~+", max_size=8),
    ),
)


@pytest.mark.slow
@settings(fuzzed, max_examples=FEW)
@given(st.lists(OVERRIDES, min_size=1, max_size=3))
def test_any_command_line(words: list[str]) -> None:
    words = [word for word in words if "\x00" not in word]  # which no system hands on
    with told(), initialize() as ready:
        assert ready
        try:
            cfg = compose("train", ["model=mlp_to_mlp", *words], return_hydra_config=True)
        except Exception as error:
            if not (of_hydra(error) and explain(error, words=words)):
                raise
            return
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        chain_of(check(cfg, typed_keys(words)))


@contextlib.contextmanager
def initialize() -> Iterator[bool]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield True


# Checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


HEADER = json.dumps(
    {
        **{"schema": 1, "net": {"_target_": "kd.nets.mlp.MLP", "hidden": [5]}, "shape": [1, 4, 4]},
        **{"classes": list("abcd"), "mean": [0.5], "std": [0.5]},
    }
)


def net() -> nn.Module:
    return MLP(4, 1, 4, [5])


@cache
def contents() -> tuple[tuple[str, bytes], ...]:
    """Weights of that net in each kind of file."""
    from safetensors.torch import save

    state = net().state_dict()
    packed, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, packed)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    return (
        (".safetensors", save(state, {"kd": HEADER})),
        (".ckpt", packed.getvalue()),
        (".pt", legacy.getvalue()),
    )


def damaged(content: bytes, draw: Callable[..., Any]) -> bytes:
    """Change, remove, duplicate or insert bytes."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(len(found), 2 * len(content)) - 1)))
        what = draw(st.sampled_from(["flip", "flip", "cut", "end", "insert", "double"]))
        if what == "flip" and found:
            found[at] = draw(st.integers(0, 255))
        elif what == "cut":
            del found[at : at + draw(st.integers(1, 64))]
        elif what == "end":
            del found[at:]
        elif what == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            found[at:at] = found[at : at + 64]
    return bytes(found)


@fuzzed
@given(st.data())
def test_any_checkpoint(place: Path, drawn: st.DataObject) -> None:
    suffix, content = drawn.draw(st.sampled_from(contents()))
    path = place / f"weights{suffix}"
    path.write_bytes(damaged(content, drawn.draw))
    with told():
        load_weights(net(), path, "teacher.path")
    if suffix == ".safetensors":
        with told():
            read_student(path, "model")


@fuzzed
@given(st.data())
def test_any_state_dict(place: Path, drawn: st.DataObject) -> None:
    """A whole file, with something else in it."""
    tensors = st.builds(torch.zeros, st.lists(st.integers(0, 5), max_size=3))
    kinds = st.sampled_from([torch.float16, torch.int64, torch.bool, torch.complex64])
    state: Any = dict(net().state_dict())
    for _ in range(drawn.draw(st.integers(1, 3))):
        names = st.sampled_from(sorted(map(str, state)))
        name = drawn.draw(st.one_of(names, st.text(max_size=4), st.integers()))
        values = [LEAVES, tensors, st.just(net().state_dict())]
        if isinstance(kept := state.get(name), torch.Tensor):
            values.append(kinds.map(kept.to))
        state[name] = drawn.draw(st.one_of(values))
    for holder in drawn.draw(st.lists(st.sampled_from(["state_dict", "model", "x"]), max_size=2)):
        state = {holder: state}
    path = place / "weights.pt"
    torch.save(state, path)
    with told():
        load_weights(net(), path, "teacher.path")


@fuzzed
@given(st.data())
def test_any_header(place: Path, drawn: st.DataObject) -> None:
    from safetensors.torch import save_file

    found = changed(json.loads(HEADER), drawn.draw, drawn.draw(st.integers(1, 2)))
    text = drawn.draw(
        st.sampled_from([json.dumps(found), json.dumps(found)[:-1], json.dumps([found])])
    )
    save_file(net().state_dict(), place / "student.safetensors", {"kd": text})
    with told():
        model, shape, classes = read_student(place / "student.safetensors", "model")
        assert isinstance(shape, Shape)
        assert len(classes) == shape.num_classes
        model(torch.zeros(1, shape.channels, shape.image_size, shape.image_size))


# Reports


@pytest.fixture(scope="module")
def reported(finished: Path, place: Path) -> tuple[Path, dict[str, Any]]:
    """A folder with a run, and its report."""
    folder = place / "runs" / "run"
    shutil.copytree(finished, folder)
    report = json.loads((folder / "report.json").read_text())
    return folder, report


@pytest.mark.slow
@fuzzed
@given(st.data())
def test_any_report(reported: tuple[Path, dict[str, Any]], drawn: st.DataObject) -> None:
    """Open it as a run, and ask for images and nets."""
    folder, report = reported
    found = changed(report, drawn.draw, drawn.draw(st.integers(1, 3)))
    content = json.dumps(found).encode()
    if drawn.draw(st.integers(0, 9)) == 0:
        content = damaged(content, drawn.draw)
    (folder / "report.json").write_bytes(content)
    with told():
        run = open_run(folder)
        with told():
            run.nets()
        with told():
            assert run.data(cache_dir=None).name


@pytest.mark.slow
@settings(fuzzed, max_examples=max(1, EXAMPLES // 4))
@given(st.data())
def test_any_reports_side_by_side(
    reported: tuple[Path, dict[str, Any]], drawn: st.DataObject
) -> None:
    folder, report = reported
    others = [folder.with_name(f"other{i}") for i in range(2)]
    for each in (folder, *others):
        each.mkdir(exist_ok=True)
        found = {**report, "seed": drawn.draw(st.integers(0, 2))}
        times = drawn.draw(st.integers(0, 2))
        (each / "report.json").write_text(
            json.dumps(changed(found, drawn.draw, times) if times else found)
        )
    with told():
        assert write_summary([folder.parent]).startswith("# ")
