"""Search space: knobs and ranges, read from YAML and checked before training."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from kd.config.checking import describe
from kd.config.knobs import KNOBS, uses
from kd.config.schema import Strict
from kd.errors import UserError, nearest
from kd.log import say

if TYPE_CHECKING:
    from optuna.trial import Trial

# Composes the command's config with further overrides, `hydra` included
Compose = Callable[[Sequence[str]], DictConfig]

FORMS = "{low: 1, high: 16}, with log: true or step: 1 if need be, or {choices: [a, b]}"

# Keys that cannot make a setting better, or that choose the images or seed of its evaluation.
FIXED = {"seed", "stages", "stage", "force", "debug", "pictures", "output_dir", "name", "hydra"}
FIXED |= {"logger"}
OF_DATA = (
    "data.augment",
    "data.views",
    "data.class_weights",
    "data.sampler",
    "data.logit_adjustment",
    "data.focal_gamma",
)


class Range(Strict):
    """Range of one knob.

    Attributes:
        low, high: both included.
        log: sample on a logarithmic scale.
        step: only low, low + step, and so on.
        choices: these values only.
    """

    low: Any = None
    high: Any = None
    log: bool = False
    step: Any = None
    choices: list[object] | None = Field(default=None, min_length=2)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("choices stand alone, without low, high, log and step")
            return self
        if self.low is None or self.high is None:
            raise ValueError(f"needed are low and high; accepted is {FORMS}")
        for found in (self.low, self.high, self.step or 1):
            if isinstance(found, bool) or not isinstance(found, (int, float)):
                raise ValueError(f"found {found!r}, accepted is a number")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"found low {self.low} and high {self.high}; low must be below high, both finite"
            )
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"found step {self.step}, accepted is a number above 0")
        return self


@dataclass(frozen=True)
class Knob:
    """A knob of the search.

    Attributes:
        name: dotted key in the config, or name of a group of files.
        of_group: whether it is a group.
        integer: whether only integers between low and high are allowed.
    """

    name: str
    range: Range
    of_group: bool
    integer: bool

    def draw(self, trial: "Trial") -> str:
        """Draw the trial's value, formatted as by `written`."""
        low = self.range.low
        high = self.range.high
        step = self.range.step
        log = self.range.log
        if self.range.choices is not None:
            return str(
                trial.suggest_categorical(self.name, [text_of(each) for each in self.range.choices])
            )
        if self.integer:
            return self.as_text(trial.suggest_int(self.name, low, high, step=step or 1, log=log))
        return self.as_text(trial.suggest_float(self.name, low, high, step=step, log=log))

    def as_text(self, value: object) -> str:
        """Format a value as it stands after `KNOB=` on the command line; numbers to four digits."""
        if self.range.choices is not None or self.integer:
            return str(value)
        return repr(min(max(float(f"{value:.4g}"), float(self.range.low)), float(self.range.high)))

    def default(self, cfg: DictConfig) -> object:
        """Return the recipe's value as the trial would draw it; None if out of range."""
        found = (
            cfg.hydra.runtime.choices.get(self.name)
            if self.of_group
            else OmegaConf.select(cfg, self.name)
        )
        if OmegaConf.is_config(found):
            found = OmegaConf.to_container(found, resolve=True)
        if self.range.choices is not None:
            return text_of(found) if text_of(found) in map(text_of, self.range.choices) else None
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            return None
        step = self.range.step or (1 if self.integer else 0)
        steps = (found - self.range.low) / step if step else 0
        reached = math.isclose(steps, round(steps), abs_tol=1e-9)
        return found if reached and self.range.low <= found <= self.range.high else None

    def applies(self, cfg: DictConfig) -> bool:
        """Whether the knob has an effect in this config."""
        if self.of_group:
            return True
        return (
            uses(cfg, self.name)
            if self.name in KNOBS
            else _is_leaf(OmegaConf.select(cfg, self.name, default=_MISSING))
        )


@dataclass(frozen=True)
class Space:
    """All knobs of a search, groups of files first.

    The choice of files may decide which other knobs apply.
    """

    knobs: tuple[Knob, ...]

    def draw(self, trial: "Trial", compose: Compose) -> dict[str, str]:
        """Draw the setting of a trial: the value after `KNOB=`, by knob."""
        found = {knob.name: knob.draw(trial) for knob in self.knobs if knob.of_group}
        cfg = compose(overrides_of(found))
        return found | {
            knob.name: knob.draw(trial)
            for knob in self.knobs
            if not knob.of_group and knob.applies(cfg)
        }

    def defaults(self, cfg: DictConfig) -> dict[str, object] | None:
        """Return the recipe's own setting as a trial would draw it.

        None if part of it is out of range.
        """
        found = {knob.name: knob.default(cfg) for knob in self.knobs if knob.applies(cfg)}
        return None if None in found.values() else found


def read_space(
    node: Mapping[str, object],
    compose: Compose,
    asked: Collection[str] | None,
    own: Collection[str],
) -> Space:
    """Read the knobs under `search.space` and check them against the config.

    Args:
        asked: knobs that the user asked for; None for all. A knob that the loss does not use is
            left out, but refused if it was asked for.
        own: keys of the search itself.

    Raises:
        UserError: an unknown knob, one without effect or not to be searched, or an invalid range.
    """
    cfg = compose([])
    groups = set(cfg.hydra.runtime.choices)
    ranges = _ranges(node)
    knobs = [_knob(name, found, cfg, groups) for name, found in ranges.items()]
    knobs.sort(key=lambda knob: not knob.of_group)
    contexts = [cfg]
    for knob in knobs:
        if knob.of_group:
            contexts += [
                compose([f"{knob.name}={text_of(each)}"]) for each in knob.range.choices or ()
            ]
    kept = []
    for knob in knobs:
        if knob.name.partition(".")[0] in FIXED | set(own) or _of_fixed_data(knob.name):
            raise UserError(
                f"search.space.{knob.name}: cannot be searched: settings would not be compared "
                f"fairly"
            )
        if any(knob.applies(context) for context in contexts):
            kept.append(knob)
        elif knob.name not in KNOBS:
            keys = [key for context in contexts for key in leaves(context)]
            raise UserError(
                f"search.space.{knob.name}: no such knob{nearest(knob.name, [*keys, *groups])}"
            )
        elif asked is None or knob.name in asked:
            raise UserError(
                f"search.space.{knob.name}: the chosen loss does not use it; it has {_numbers(cfg)}"
            )
        else:
            say(f"left out of the search: {knob.name}, which the chosen loss does not use")
    if not kept:
        raise UserError(
            "search.space: there is nothing to search; name a knob with its range, such as "
            f"'search.space.optim.lr={{low: 0.001, high: 0.01, log: true}}'; the loss has "
            f"{_numbers(cfg)}"
        )
    return Space(tuple(kept))


def numbers_of_loss(cfg: DictConfig) -> dict[str, Any]:
    """Return the ranges of a loss's own numbers, as of `search=method`.

    They are temperature and alpha, where the loss uses them. A weight that is a number of its own
    goes from a tenth of it to ten times that, and so does the start or end of its schedule.
    """
    known = {
        "temperature": {"low": 1.0, "high": 16.0, "log": True},
        "alpha": {"low": 0.1, "high": 0.9},
    }
    found: dict[str, Any] = {knob: each for knob, each in known.items() if uses(cfg, knob)}
    loss: Any = OmegaConf.to_container(cfg.loss, resolve=False)
    terms = loss["terms"] or {}
    weights = {f"loss.terms.{name}.weight": each.get("weight") for name, each in terms.items()}
    for key, value in flat(weights).items():
        is_weight = key.endswith((".weight", ".start", ".end"))
        if is_weight and isinstance(value, (int, float)) and value > 0:
            found[key] = {"low": value / 10, "high": value * 10.0, "log": True}
    return found


def _of_fixed_data(name: str) -> bool:
    return name == "data" or (name.startswith("data.") and not name.startswith(OF_DATA))


def _knob(name: str, found: Range, cfg: DictConfig, groups: Collection[str]) -> Knob:
    of_group = name in groups
    if of_group and found.choices is None:
        raise UserError(
            f"search.space.{name}: is a group of files; accepted is {{choices: [a, b]}}"
        )
    default = None if of_group else OmegaConf.select(cfg, name)
    whole = all(isinstance(each, int) for each in (found.low, found.high, found.step or 1))
    return Knob(name, found, of_group, whole and not isinstance(default, float))


def _ranges(node: Mapping[str, object], prefix: str = "") -> dict[str, Range]:
    """Return the ranges in a tree of knobs, by dotted key."""
    found: dict[str, Range] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if not isinstance(value, Mapping) or not value:
            raise UserError(f"search.space.{key}: found {value!r}; accepted is {FORMS}")
        if not any(
            each in Range.model_fields and not isinstance(value[each], Mapping) for each in value
        ):
            found |= _ranges(value, f"{key}.")  # descend toward the knobs
            continue
        try:
            found[key] = Range.model_validate(dict(value))
        except ValidationError as error:
            lines = (_line(each, f"search.space.{key}") for each in error.errors())
            raise UserError("\n".join(lines)) from None
    return found


def _line(error: ErrorDetails, key: str) -> str:
    return describe(error, Range, f"{key}.") if error["loc"] else f"{key}: {error['ctx']['error']}"


def leaves(cfg: DictConfig) -> list[str]:
    """Return all dotted keys of `kd.train`'s config that are no mappings."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    own = {str(key): value for key, value in plain.items() if key not in ("hydra", "search")}
    return list(flat(own))


def flat(node: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return a tree's values by dotted key."""
    found: dict[str, object] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return found


def _numbers(cfg: DictConfig) -> str:
    """Return the numbers in the loss, for messages."""
    loss = (key for key in leaves(cfg) if key.startswith("loss."))
    return ", ".join(key for key in loss if isinstance(OmegaConf.select(cfg, key), (int, float)))


_MISSING = object()
WORDS = ("null", "true", "false", "inf", "nan")  # strings that Hydra would parse as other types


def _is_leaf(found: object) -> bool:
    """Whether this is a knob's value: anything except a mapping, or a schedule."""
    return found is not _MISSING and (not isinstance(found, DictConfig) or "schedule" in found)


def overrides_of(setting: Mapping[str, str]) -> list[str]:
    """Format a setting as command-line overrides."""
    return [f"{name}={value}" for name, value in setting.items()]


def text_of(value: object) -> str:
    """Format a value in Hydra's override grammar."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {text_of(each)}" for name, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(text_of, value)) + "]"
    if not isinstance(value, str) or (
        re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value not in WORDS
    ):
        return str(value)
    return "'" + value.replace("\\", "\\\\").replace("'", r"\'") + "'"
