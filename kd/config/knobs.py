"""The top-level knobs `alpha` and `temperature`: which of them a method uses, and how."""

import copy
import re
from collections.abc import Collection, Mapping

from omegaconf import Container, DictConfig, OmegaConf

from kd.errors import UnusedError

# Each knob with its prefix in a run's name. A method uses those that its file in conf/loss refers
# to.
KNOBS = {"temperature": "T", "alpha": "a"}


def refuse_unused(cfg: DictConfig, typed: Collection[str]) -> None:
    """Refuse a knob that was set although the chosen loss does not use it.

    Args:
        typed: keys on the command line. A schedule counts as set wherever it stands: no method has
            one as a default, so it comes from a recipe.

    Raises:
        UnusedError: names the knob, and the numbers of the loss.
    """
    for knob in KNOBS:
        if (knob in typed or isinstance(cfg[knob], DictConfig)) and not uses(cfg, knob):
            numbers = ", ".join(_numbers(OmegaConf.to_container(cfg.loss, resolve=True), "loss"))
            raise UnusedError(
                f"{knob}: the chosen loss does not use it, so it would change nothing; it has "
                f"{numbers}"
            )


def uses(cfg: Container, knob: str) -> bool:
    """Whether the loss of a composed config depends on a knob: changes the knob and compares."""
    losses = []
    turned = copy.deepcopy(cfg)
    OmegaConf.set_readonly(turned, False)
    for value in (0.25, 0.75):
        OmegaConf.update(turned, knob, value, merge=False)
        losses.append(OmegaConf.to_container(OmegaConf.select(turned, "loss"), resolve=True))
    return losses[0] != losses[1]


def used_knobs(*, _root_: Container) -> str:
    """Return the knobs that the loss uses, for the run's name: `_T4.0_a0.9`."""
    used = [knob for knob in KNOBS if uses(_root_, knob)]
    return "".join(f"_{KNOBS[knob]}{in_a_name(OmegaConf.select(_root_, knob))}" for knob in used)


def after_underscore(word: str | None) -> str:
    """Format an optional part of the run's name: `_word`, or nothing."""
    return f"_{word}" if word and word != "null" else ""


def one_minus(value: object) -> object:
    """Compute 1 minus a number or a schedule of the config."""
    if isinstance(value, DictConfig):
        return {"schedule": "one_minus", "of": OmegaConf.to_container(value, resolve=True)}
    # Other values are refused at their own key
    return 1 - value if isinstance(value, (int, float)) else value


def in_a_name(value: object) -> str:
    """Format a number or a schedule for a file name: `4.0`, `cosine-8-2`."""
    if not isinstance(value, Mapping):
        return str(value)
    words = [
        str(part).rpartition(".")[2] if key == "_target_" else str(part)
        for key, part in value.items()
    ]
    return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(words))


def _numbers(node: object, prefix: str) -> list[str]:
    """Return the dotted keys of numbers under a config node."""
    if isinstance(node, dict):
        return [key for name, value in node.items() for key in _numbers(value, f"{prefix}.{name}")]
    return [prefix] if isinstance(node, (int, float)) and not isinstance(node, bool) else []


OmegaConf.register_new_resolver("one_minus", one_minus, replace=True)
OmegaConf.register_new_resolver("after_underscore", after_underscore, replace=True)
OmegaConf.register_new_resolver("used_knobs", used_knobs, replace=True)
