"""Request to `kd.tune`.

Checked together with the search space, before torch is imported.
"""

import copy
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from kd.command import typed_keys, typed_overrides
from kd.config.checking import check_as
from kd.config.fields import FolderName, Node, Seed
from kd.config.schema import Config, Strict, check
from kd.errors import UserError
from kd.tuning.space import Space, numbers_of_loss, read_space

OF_SPACE = "search.space."


def with_new_ranges(words: Sequence[str]) -> list[str]:
    """Add Hydra's `++` to ranges on a command line: any knob may be in the search space."""
    return [re.sub(rf"^(?={re.escape(OF_SPACE)})", "++", word) for word in words]


def _once(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("each may be named once")
    return seeds


class SearchNode(Strict):
    """Contents of a file in conf/search.

    Attributes:
        numbers_of_loss: search the chosen loss's own numbers too; see `kd.tuning.space`.
    """

    space: Node
    numbers_of_loss: bool = False


class SearchSettings(Strict):
    """Settings of any search; see conf/base/search.yaml."""

    timeout: PositiveFloat | None
    startup_trials: PositiveInt
    pruning: bool
    warmup_epochs: NonNegativeInt
    storage: str | None
    search: SearchNode


class Tuning(SearchSettings):
    """Settings of `kd.tune`; see conf/tune.yaml."""

    n_trials: PositiveInt
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_once)]
    study: FolderName | None


class TuneConfig(Config, Tuning):
    """Config of `kd.tune`."""


@dataclass(frozen=True)
class Request:
    """A checked search request.

    Attributes:
        config: of the recipe's own setting.
        overrides: those of the command line that belong to `kd.train`; a setting appended to them
            is a run.
        default: the recipe's own setting as a trial would draw it; None if part of it is out of
            range.
        about: data, nets and loss in a word each, for the study's name.
    """

    tuning: Tuning
    config: Config
    space: Space
    overrides: tuple[str, ...]
    default: Mapping[str, object] | None
    about: str

    @property
    def own(self) -> dict[str, str] | None:
        """Return the recipe's own setting in command-line form; None as for `default`."""
        if self.default is None:
            return None
        knobs = {knob.name: knob for knob in self.space.knobs}
        return {name: knobs[name].as_text(value) for name, value in self.default.items()}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose the command's config with further overrides."""
        return _compose(self.overrides, overrides)

    def config_with(self, overrides: Sequence[str]) -> Config:
        """Validate the config of a run with further overrides.

        Raises:
            UserError: the run does not accept a value.
        """
        return check(_of_train(self.compose(overrides)), typed_keys([*self.overrides, *overrides]))


def accept(cfg: DictConfig, keys: Collection[str]) -> Request:
    """Check a composed config and its search space, before heavy imports.

    Raises:
        UserError: anything in it is wrong.
    """
    return make_request(cfg, typed_overrides(), keys)


def compose_request(task: Sequence[str]) -> Request:
    """Compose and check the request that these overrides of `kd.tune` make."""
    return make_request(_compose(task, []), task, typed_keys(task))


def make_request(cfg: DictConfig, task: Sequence[str], keys: Collection[str]) -> Request:
    """Check a composed config and its search space; see `accept`.

    Args:
        task: the overrides.
    """
    own = set(Tuning.model_fields)
    tuning = check_as(Tuning, OmegaConf.create({key: _plain(cfg[key]) for key in own}))
    overrides = tuple(each for each in task if not typed_keys([each]) & own)
    node, asked = typed_space(tuning.search.space, task)
    base = _compose(overrides, [])
    if tuning.search.numbers_of_loss:
        node = {**numbers_of_loss(base), **node}
    space = read_space(node, functools.partial(_compose, overrides), asked, own)
    choices = base.hydra.runtime.choices
    if choices["data"] == "digits" and not any(word.startswith("data=") for word in overrides):
        overrides = (*overrides, "data=digits")  # kd.train's own are digits_few
    about = "{data}_{teacher}_to_{student}_{loss}".format(**choices)
    about += f"_{choices['experiment']}" if choices["experiment"] else ""
    default = space.defaults(base)
    config = check(_of_train(base), keys)
    if config.force:
        raise UserError(
            "force: found true; a search does not retrain finished stages, so accepted is false"
        )
    if config.budget is not None:
        raise UserError(
            f"budget: found {config.budget}; a search's epochs must not change, so "
            "accepted is null; timeout=SECONDS ends a search"
        )
    return Request(tuning, config, space, overrides, default, about)


def _compose(overrides: Sequence[str], more: Sequence[str]) -> DictConfig:
    return _compose_once((*overrides, *more))


@functools.cache  # a trial looks up its knobs in the same config many times
def _compose_once(overrides: tuple[str, ...]) -> DictConfig:
    return compose("tune", list(overrides), return_hydra_config=True)


def _plain(node: object) -> object:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _of_train(cfg: DictConfig) -> DictConfig:
    """Return the part of a composed config that belongs to `kd.train`."""
    part = copy.copy(cfg)
    with open_dict(part):
        for key in (*Tuning.model_fields, "hydra"):
            part.pop(key, None)
    return part


def typed_space(space: Node, overrides: Sequence[str]) -> tuple[Node, set[str] | None]:
    """Return the space with each range as typed, and the typed knobs; None if a file was chosen.

    Hydra would merge the keys of a typed range with those of the file's range.
    """
    found = OmegaConf.create(space)
    asked = set()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group.startswith(OF_SPACE) and not override.is_delete():
            key = override.key_or_group.removeprefix(OF_SPACE)
            OmegaConf.update(found, key, override.value(), merge=False, force_add=True)
            asked.add(key)
    plain = OmegaConf.to_container(found)
    assert isinstance(plain, dict)
    chosen = any(override.startswith("search=") for override in overrides)
    return {str(key): value for key, value in plain.items()}, None if chosen else asked
