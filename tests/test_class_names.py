"""Teachers with another class order or more classes: by name, from the file, or found on
validation.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import plan, tiny
from safetensors.torch import save_file
from torch import Tensor

from kd.config.construct import construct
from kd.config.schema import check
from kd.data.base import DataModule
from kd.errors import UserError
from kd.files.class_names import names_from_config, names_in, outputs_for
from kd.files.store import StageResult, Store
from kd.nets.mlp import MLP
from kd.runs.run import run
from kd.stages.complete import complete
from kd.stages.result import load_net
from kd.stages.stage import make_stage
from kd.teachers.diagnosis import knows_validation, other_order

TEN = [str(digit) for digit in range(10)]
PLUS = ["plus", *TEN[::-1], "minus"]  # a superset in another order


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (["0", "1", "10", "2"], ["0", "1", "2", "10"], [0, 1, 3, 2]),
        (["dog", "cat", "eel"], ["cat", "dog"], [1, 0]),
        (["Golden Retriever", "tench, Tinca tinca"], ["tench", "golden_retriever"], [1, 0]),
        (["A", "a"], ["a", "A"], [1, 0]),  # the same name wins over one that is alike
    ],
)
def test_outputs_by_name(theirs: list[str], ours: list[str], expected: list[int]) -> None:
    assert outputs_for(theirs, ours, "x") == expected


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (["cat", "dog"], ["cat", "dogs"], ["1 are not among its 2", "dogs", "did you mean"]),
        (["a-b"], ["a b", "a_b"], ["its class 'a-b' could be each of a b, a_b"]),
    ],
)
def test_classes_that_are_missing(theirs: list[str], ours: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        outputs_for(theirs, ours, "teacher.classes")
    assert all(word in str(error.value) for word in ["teacher.classes", *words])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "\ufeffcat\ndog\n\n", ["cat", "dog"]),
        ("a.json", '["cat", "dog"]', ["cat", "dog"]),
        ("a.json", '{"dog": 1, "cat": 0}', ["cat", "dog"]),
        ("a.json", '{"1": "dog", "0": "cat"}', ["cat", "dog"]),
    ],
)
def test_a_file_of_names(name: str, content: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert names_from_config(str(tmp_path / name), "teacher.classes") == expected
    (tmp_path / "a.json").write_text("{}")
    for wrong in ("a.json", "nothing.txt"):
        with pytest.raises(UserError, match=r"teacher\.classes: "):
            names_from_config(str(tmp_path / wrong), "teacher.classes")


@pytest.mark.parametrize(
    ("content", "beside"),
    [
        ({"class_to_idx": {"dog": 1, "cat": 0}}, {}),
        ({"classes": ["cat", "dog"]}, {"label_names": ["x", "y"]}),
        ({"hyper_parameters": {"class_names": ["cat", "dog"]}}, {}),
        ({}, {"label_names": ["cat", "dog"], "num_classes": 2}),  # timm's config.json
        ({}, {"pretrained_cfg": {"label_names": ["cat", "dog"]}}),
        ({}, {"id2label": {"0": "cat", "1": "dog"}}),  # transformers'
    ],
)
def test_a_checkpoint_says_its_classes(
    content: dict[str, Any], beside: dict[str, Any], tmp_path: Path
) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, **content}, tmp_path / "a.pt")
    assert (names_in(tmp_path / "a.pt", "x") is None) == (not content)
    (tmp_path / "config.json").write_text(json.dumps(beside))
    assert names_in(tmp_path / "a.pt", "x") == ["cat", "dog"]
    if not content:
        save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
        assert names_in(tmp_path / "model.safetensors", "x") == ["cat", "dog"]


def saved(path: Path, count: int, **beside: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = MLP(count, 1, 8, [16]).state_dict()
    torch.save({"state_dict": state, **beside}, path)
    return state


def teacher(tmp_path: Path, *overrides: str) -> StageResult:
    config = check(tiny(tmp_path, f"teacher.path={tmp_path / 'a.pt'}", *overrides))
    data = construct(config.data, "data")
    assert isinstance(data, DataModule)
    stage = make_stage(plan(config, "teacher"), config, data, {})
    return complete(stage, Store(tmp_path / "store"), data)[0]


HIDDEN = "teacher.net.hidden=[16]"


@pytest.mark.slow
@pytest.mark.parametrize("from_file", [True, False])
def test_a_superset_is_cut_down_and_put_in_order(from_file: bool, tmp_path: Path) -> None:
    said = {"classes": PLUS} if from_file else {}
    state = saved(tmp_path / "a.pt", 12, **said)
    given = [] if from_file else [f"teacher.classes=[{','.join(PLUS)}]"]
    found = load_net(teacher(tmp_path, HIDDEN, *given)).state_dict()
    rows = list(range(10, 0, -1))  # "0" is output 10 of theirs, "9" output 1
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor[rows] if name.startswith("fc") else tensor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "overrides", "words"),
    [
        (10, ["teacher.classes=[0,1,2]"], ["7 are not among its 3", "teacher.classes"]),
        (10, [f"teacher.classes=[{','.join(PLUS)}]"], ["said to be for 12 classes", "is for 10"]),
        (12, [], ["is for 12 classes, the data has 10", "teacher.classes takes the names"]),
    ],
)
def test_what_cannot_be_mapped_is_refused(
    classes: int, overrides: list[str], words: list[str], tmp_path: Path
) -> None:
    saved(tmp_path / "a.pt", classes)
    with pytest.raises(UserError) as error:
        teacher(tmp_path, HIDDEN, *overrides)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


@pytest.mark.slow
def test_classes_are_about_a_path(tmp_path: Path) -> None:
    for key in ("classes=[a,b]", "state=ema"):
        with pytest.raises(UserError, match=f"teacher.{key[:5]}.*teacher.path is not set"):
            check(tiny(tmp_path, f"teacher.{key}"))


def one_hot(chosen: list[int], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(chosen), classes).double()


def test_another_order_of_the_outputs_is_found() -> None:
    names = ["0", "1", "2", "10"]
    labels = [i % 4 for i in range(200)]
    theirs = [0, 1, 3, 2]  # natural order here, "0, 1, 10, 2" there
    said = other_order(one_hot([theirs[i] for i in labels], 4), torch.tensor(labels), names)
    assert said
    assert "right on 50.0 % " in said
    assert 'on 100.0 % with \'teacher.classes=["0", "1", "10", "2"]\'' in said
    assert other_order(one_hot(labels, 4), torch.tensor(labels), names) is None


def test_chance_is_no_other_order() -> None:
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 10, 100):  # few images a class: the best order for them is always better
        labels = torch.randint(classes, (200,), generator=generator)
        logits = torch.randn(200, classes, generator=generator)
        assert other_order(logits, labels, [str(i) for i in range(classes)]) is None


@pytest.mark.parametrize(
    ("val", "test", "gap", "said"),
    [
        ((0.9998, 0.998, 1.0), (0.9339, 0.929, 0.939), 0.01, True),  # akamaster's ResNet-56
        ((0.95, 0.94, 0.96), (0.93, 0.925, 0.939), 0.0, False),  # under 3 points
        ((0.95, 0.90, 0.98), (0.91, 0.88, 0.93), 0.0, False),  # the intervals overlap
        ((0.97, 0.96, 0.98), (0.85, 0.82, 0.88), 0.11, False),  # so has the baseline: other images
    ],
)
def test_a_teacher_that_knows_the_validation_images(
    val: tuple[float, float, float], test: tuple[float, float, float], gap: float, said: bool
) -> None:
    found = knows_validation(val, test, gap, 0.01, 10)
    assert (found is not None) == said
    for words in ("99.98 % of them and on 93.39 % of the test", "0.010 of at most 2.30 nats, next"):
        assert not said or words in (found or "")


@pytest.mark.slow
def test_both_are_told_in_output_report_and_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Teacher that memorised training and validation images, with reordered outputs."""
    overrides = ("data.limit=60", "data.val_fraction=0.1", HIDDEN, "batch_size=30")
    made: Any = construct(check(tiny(tmp_path, *overrides)).data, "data")
    seen = made.split.train.join(made.split.val)
    torch.manual_seed(0)
    net, mean_std = MLP(10, 1, 8, [16]), made.statistics
    x = (seen.pixels[torch.arange(len(seen))] / 255 - mean_std[0][0]) / mean_std[1][0]
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), (seen.labels + 1) % 10).backward()
        optimizer.step()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    for order in (None, TEN[-1:] + TEN[:-1]):
        given = [f"teacher.classes=[{','.join(order)}]"] if order else []
        path = f"teacher.path={tmp_path / 'a.pt'}"
        folder = run(check(tiny(tmp_path, path, *overrides, *given)), "a test")
        report = json.loads((folder / "report.json").read_text())
        words = "been trained on the validation images" if order else "in another order than the"
        assert any(words in line for line in report["warnings"])
        texts = [capsys.readouterr().out.replace("\n", " ")]
        texts += [(folder / name).read_text() for name in ("report.md", "MODEL_CARD.md")]
        for text in texts:
            assert words in text
            assert "longer (teacher.epochs)" not in text
