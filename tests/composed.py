"""Composed configs, as the commands see them."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from kd.command import CONF
from kd.config.schema import Config
from kd.stages.chain import StagePlan, chain_of

# Its student is a transformer of timm with two heads: test_feature_losses.py, test_pretrained.py.
OF_TWO_HEADS = "deit_token"
METHODS = sorted(path.stem for path in (CONF / "loss").glob("*.yaml") if path.stem != OF_TWO_HEADS)

# Methods for incremental classes; elsewhere no class is new to the teacher.
OF_TASKS = ("lwf", "lwf_bce", "lwf_mix", "icarl", "der")

# Methods that use features.
ON_FEATURES = (
    *(
        "fitnet",
        "at",
        "sp",
        "cc",
        "rkd",
        "pkt",
        "vid",
        "nst",
        "ft",
        "ab",
        "fsp",
        "ofd",
        "crd",
        "reviewkd",
        "simkd",
    ),
    *("srrl", "kdsvd", "mgd", "cosine_features", "wkd_l", "wkd_f", "ickd", "sdd", "cat_kd"),
    *("dcd", "rrd", "byot", "diffkd", "embedding", "queue", "semckd"),
)

# The same numbers on every machine; `auto` has tests of its own in test_precision.py.
FLOAT32 = ("trainer.precision=32-true", "teacher.precision=32-true")

# A run of seconds: 200 images, two epochs, perceptrons.
TINY = (
    *FLOAT32,
    "pictures=false",
    "data.limit=200",
    "epochs=2",
    "teacher.epochs=2",
    "batch_size=50",
    "teacher.batch_size=50",
    "teacher.net.hidden=[16]",
    "student.net.hidden=[8]",
)


def composed(*overrides: str, config: str = "train") -> DictConfig:
    """Compose a command's config with these overrides; that of `kd.train` for a pair of tiny nets.

    Figures take longer to draw than such nets to train. Tests of figures set `pictures=true`.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        first = ["model=mlp_to_mlp", "pictures=false"] if config == "train" else []
        if config == "train" and not any(word.startswith("experiment=") for word in overrides):
            first.append("data=digits")  # with all labels, where the command keeps a few
        words = [*first, *FLOAT32, *_own_lengths(overrides), *overrides]
        cfg = compose(config, words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _own_lengths(overrides: Sequence[str]) -> list[str]:
    """Switch a folder's `min_steps` and `min_batches` off where epochs and batches are typed.

    The commands do this by what was typed; `composed` does not keep it.
    """
    if "data=image_folder" not in overrides:
        return []
    typed = {word.partition("=")[0] for word in overrides}
    pairs = ("epochs", "min_steps"), ("batch_size", "min_batches")
    return [
        f"{of}{least}=0" for of in ("", "teacher.") for key, least in pairs if f"{of}{key}" in typed
    ]


def composed_command(name: str, *overrides: str) -> DictConfig:
    """The config of another command, under these overrides."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def loss_node(name: str, *overrides: str) -> dict[str, Any]:
    """Return the resolved config node of `loss=name`."""
    return deepcopy(_loss_node(name, *overrides))


@cache  # Composing takes a tenth of a second, and many tests ask for the same losses.
def _loss_node(name: str, *overrides: str) -> dict[str, Any]:
    file = OmegaConf.load(CONF / "loss" / f"{name}.yaml")
    if overrides or "defaults" in file:
        node = composed(f"loss={name}", *overrides).loss
    else:  # the same in a hundredth of the time: test_losses.py compares the two
        node = OmegaConf.merge(_without_loss(), file).loss
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]


@cache
def _without_loss() -> DictConfig:
    """Return what a loss may refer to, from a loss that sets none of it: CRD is one."""
    cfg = composed("loss=crd")
    return OmegaConf.masked_copy(cfg, ["alpha", "temperature", "student", "teacher"])


def tiny(folder: Path, *overrides: str) -> DictConfig:
    """Compose a run that takes a second: 200 images, 2 epochs, results in `folder`."""
    budget = [
        "data.limit=200",
        "epochs=2",
        "teacher.epochs=2",
        "batch_size=50",
        "teacher.batch_size=50",
    ]
    return composed("trainer=cpu", f"output_dir={folder}", *budget, *overrides)


def plan(config: Config, name: str) -> StagePlan:
    """The stage of this name in the config's chain."""
    return next(plan for plan in chain_of(config) if plan.name == name)
