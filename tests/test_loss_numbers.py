"""Which alpha and temperature win: typed ones, an experiment's for its loss, then the loss
file's.
"""

import functools
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from composed import METHODS, composed, composed_command
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from processes import Process

from kd.command import CONF
from kd.config.loss_numbers import _numbers
from kd.reports.run_report import _numbers_from

KNOBS = ("alpha", "temperature")


@functools.cache
def read(path: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONF / f"{path}.yaml").read_text())
    return found


def loss_named(experiment: str) -> str | None:
    entries = read(f"experiment/{experiment}").get("defaults", [])
    named = [each["override /loss"] for each in entries if "override /loss" in each]
    return named[0] if named else None


@functools.cache
def own_numbers(loss: str) -> dict[str, float]:
    """Return what the file sets at top level, after its parents."""
    file, found = read(f"loss/{loss}"), {}
    for other in file.get("defaults", []):
        found |= own_numbers(other)
    return found | {knob: file[knob] for knob in KNOBS if knob in file}


EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
TURNING = [name for name in EXPERIMENTS if set(KNOBS) & set(read(f"experiment/{name}"))]
WITH_NUMBERS = [name for name in METHODS if own_numbers(name)]


def expected(experiment: str, loss: str) -> dict[str, Any]:
    recipe, own = read(f"experiment/{experiment}"), own_numbers(loss)
    plain = {"alpha": 0.5, "temperature": 2.0} | own
    return {
        knob: recipe[knob]
        if knob in recipe
        and (loss_named(experiment) == loss or knob not in own or isinstance(recipe[knob], dict))
        else plain[knob]
        for knob in KNOBS
    }


def test_every_experiment_that_turns_a_knob_names_its_loss() -> None:
    assert {name: loss_named(name) for name in TURNING} == dict.fromkeys(TURNING, "kd")
    assert len(TURNING) >= 8


def check(experiment: str, loss: str) -> None:
    cfg = composed(f"experiment={experiment}", f"loss={loss}")
    found = {knob: OmegaConf.to_container(cfg, resolve=True)[knob] for knob in KNOBS}  # type: ignore[call-overload,index]
    assert found == expected(experiment, loss), f"experiment={experiment} loss={loss}"


@pytest.mark.parametrize(
    ("words", "alpha", "temperature"),
    [
        ("experiment=cifar10", 0.9, 4.0),
        ("experiment=cifar10 loss=kd", 0.9, 4.0),
        ("experiment=cifar10 loss=label_smoothing", 0.1, 4.0),  # which has no temperature
        ("experiment=cifar10 loss=tfkd_reg", 0.1, 20.0),
        ("experiment=cifar10_resnet34_to_cnn loss=tfkd_self", 0.95, 6.0),
        ("experiment=cifar10 loss=kd_standardized", 0.9, 2.0),
        ("experiment=cifar10 loss=kd_dist", 0.5, 2.0),  # of the files that it is made of
        ("experiment=cifar10 loss=[dist,nkd]", 0.9, 1.0),
        ("experiment=[finetune,hinton_minimal] loss=ofa", 0.5, 1.0),
        ("experiment=hinton_minimal loss=nkd temperature=5", 0.5, 5),
        ("loss=dist", 0.5, 1.0),
    ],
)
def test_whose_number(words: str, alpha: float, temperature: float) -> None:
    cfg = composed(*words.split())
    assert (cfg.alpha, cfg.temperature) == (alpha, temperature)


def test_a_schedule_holds_for_another_loss_that_is_typed_with_it() -> None:
    for loss, words in product(("kd", "dkd"), ([], ["temperature.end=3"])):
        cfg = composed("experiment=temperature_falls", f"loss={loss}", *words)
        end = 3 if words else 2.0
        assert cfg.temperature == {"schedule": "cosine", "start": 8.0, "end": end}
    term = composed("experiment=labels_later", "loss=tfkd_self").loss.terms.tfkd_self
    assert term.weight == {"schedule": "linear", "start": 1.0, "end": 0.1}


def test_the_search_composes_the_same() -> None:
    cfg = composed_command("tune", "experiment=cifar10", "loss=dist")
    assert (cfg.alpha, cfg.temperature) == (0.9, 1.0)


@pytest.mark.slow
def test_an_experiment_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    recipes = {
        "plain": "temperature: 7.0\n",
        "named": "defaults: [override /loss: dist]\ntemperature: 9.0\n",
    }
    for name, text in recipes.items():
        (tmp_path / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    found = {}
    for words in ("plain", "plain loss=dist", "named", "named loss=nkd"):
        shown = Process(
            "kd.train",
            "--config-dir",
            str(tmp_path),
            *f"experiment={words}".split(),
            "--cfg",
            "job",
            "--resolve",
        ).wait()
        assert shown.returncode == 0, shown.stderr
        found[words] = yaml.safe_load(shown.stdout)["temperature"]
    # If no loss is typed or named, the recipe's number applies to its own loss.
    assert found == {"plain": 7.0, "plain loss=dist": 1.0, "named": 9.0, "named loss=nkd": 1.0}


PUBLISHED: list[tuple[str, str, dict[str, float]]] = [
    ("kd", "resnet56_to_resnet20", {"alpha": 0.9, "temperature": 4.0, "loss.ce_weight": 0.1}),
    ("nkd", "resnet56_to_resnet20", {"temperature": 3.0, "loss.terms.nkd.loss.gamma": 3.5}),
    ("mgd", "resnet56_to_resnet20", {"loss.terms.mgd.weight": 0.0012}),
    ("ofa", "vgg13_to_vgg8", {"temperature": 1.0, "loss.terms.ofa.loss.epsilon": 1.0}),
    ("dist", "vgg13_to_vgg8", {"temperature": 4.0, "loss.terms.dist.weight": 2 * 4.0**2}),
    ("dkd", "resnet56_to_resnet20", {"loss.terms.dkd.loss.non_target_weight": 2.0}),
    ("dkd", "resnet110_to_resnet32", {"loss.terms.dkd.loss.non_target_weight": 2.0}),
    ("reviewkd", "resnet110_to_resnet32", {"loss.terms.reviewkd.weight.end": 1.0}),
    ("reviewkd", "resnet32x4_to_shufflenet_v2", {"loss.terms.reviewkd.weight.end": 8.0}),
    ("dkd", "wrn40_2_to_wrn16_2", {"loss.terms.dkd.loss.non_target_weight": 6.0}),
    ("dkd", "vgg13_to_vgg8", {"loss.terms.dkd.loss.non_target_weight": 6.0}),
    ("dkd", "resnet32x4_to_resnet8x4", {"loss.terms.dkd.loss.non_target_weight": 8.0}),
    ("reviewkd", "resnet56_to_resnet20", {"loss.terms.reviewkd.weight.end": 0.6}),
    ("reviewkd", "wrn40_2_to_wrn16_2", {"loss.terms.reviewkd.weight.end": 5.0}),
    (
        "wkd_l",
        "wrn40_2_to_shufflenet_v1",
        {"temperature": 6.0, "loss.terms.wkd_l.loss.gamma.start": 200.0},
    ),
    ("sdd", "vgg13_to_vgg8", {"loss.terms.sdd.loss.non_target_weight": 6.0}),
    (
        "cat_kd",
        "wrn40_2_to_shufflenet_v1",
        {"loss.terms.cat_kd.weight": 80.0, "loss.terms.cat_kd.loss.side": 4},
    ),
    ("wkd_f", "wrn40_2_to_shufflenet_v1", {"loss.terms.wkd_f.weight.start": 0.3}),
    ("reviewkd", "vgg13_to_vgg8", {"loss.terms.reviewkd.weight.end": 5.0}),
    ("label_smoothing", "vgg13_to_vgg8", {"alpha": 0.1}),  # nothing published: the loss file's own
    ("tfkd_self", "vgg13_to_vgg8", {"alpha": 0.95, "temperature": 6.0}),
]


@pytest.mark.parametrize(("loss", "pair", "numbers"), PUBLISHED)
def test_the_protocols_numbers_are_those_published(
    loss: str, pair: str, numbers: dict[str, float]
) -> None:
    cfg = composed(PROTOCOL, f"loss={loss}", f"model={pair}")
    assert {key: OmegaConf.select(cfg, key) for key in numbers} == pytest.approx(numbers)


PROTOCOL = "experiment=cifar100_crd_protocol"


def test_the_report_says_whose_numbers(tmp_path: Path) -> None:
    says = {
        ("dkd", "resnet56_to_resnet20"): "megvii-research/mdistiller, for resnet56_to_resnet20",
        ("nkd", "resnet56_to_resnet20"): "yzd-v/cls_KD, for any pair",
        ("cc", "vgg13_to_vgg8"): "the loss file's own, as the table of published numbers has none",
    }
    for (loss, pair), source in says.items():
        assert composed(PROTOCOL, f"loss={loss}", f"model={pair}").numbers_from == source
    assert composed("loss=dkd", "model=resnet56_to_resnet20").numbers_from is None
    assert _numbers_from({"numbers_from": "x/y, for any pair"}) == [
        "- The loss's numbers, unless typed: x/y, for any pair."
    ]
    assert _numbers_from({}) == []


def test_what_is_typed_wins_over_what_is_published() -> None:
    typed = ["loss.terms.dkd.loss.non_target_weight=3", "temperature=5"]
    cfg = composed(PROTOCOL, "loss=dkd", "model=vgg13_to_vgg8", *typed)
    assert (cfg.temperature, cfg.loss.terms.dkd.loss.non_target_weight) == (5, 3)


def test_every_row_of_the_table_names_numbers_that_its_loss_has() -> None:
    rows = read("authors/cifar100_crd_protocol")["rows"]
    assert len({(row["method"], row["pair"]) for row in rows}) == len(rows)
    methods = {row["method"] for row in rows} - {"any"}
    plain = {method: composed(f"loss={method}") for method in methods}
    plain["any"] = plain["kd"]
    for row in rows:
        for key in row["value"]:
            assert OmegaConf.select(plain[row["method"]], key) is not None, (
                f"{row['method']}: {key}"
            )
        if row["pair"] != "any":
            assert list((CONF / "model").glob(f"{row['pair']}.yaml")), row["pair"]


@pytest.mark.slow
def test_every_experiment_with_every_loss() -> None:
    """Check what is merged after the experiment, for all; composed whole, for some."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for experiment, loss in product(EXPERIMENTS, METHODS):
            if (CONF / "authors" / f"{experiment}.yaml").is_file():
                continue
            recipe, right = read(f"experiment/{experiment}"), expected(experiment, loss)
            merged = _numbers(f"numbers/{experiment}/{loss}/resnet56_to_resnet20")
            found = {knob: merged.get(knob, recipe[knob]) for knob in KNOBS if knob in recipe}
            assert found == {knob: right[knob] for knob in found}, f"{experiment} {loss}"
    for i, experiment in enumerate(TURNING):
        check(experiment, WITH_NUMBERS[2 * i % len(WITH_NUMBERS)])
