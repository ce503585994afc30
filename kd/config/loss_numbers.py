"""Which `alpha` and `temperature` win if both an experiment and a loss file set them.

Command-line values win. Then the loss file wins over the experiment, unless the experiment names
that loss or has a schedule. An experiment may also have a table of published numbers,
`conf/authors/EXPERIMENT.yaml`.

Hydra merges an experiment after the loss file, so the loss file's numbers must be merged again,
before the command line. The source below provides them to Hydra: the last entry of the defaults in
`conf/train.yaml`.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from kd.config.choices import COMPUTED, config_file
from kd.config.knobs import KNOBS

GROUP = "numbers"  # numbers/EXPERIMENT/LOSS/TEACHER_to_STUDENT
OURS = "the loss file's own, as the table of published numbers has none"


class LossNumbers(ConfigSource):
    """Config source for `numbers/EXPERIMENT/LOSS/PAIR`; contents are computed, not stored."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme before `://` in Hydra's search path."""
        return COMPUTED

    def is_config(self, config_path: str) -> bool:
        """Whether there are numbers to correct for this experiment, loss and pair."""
        return bool(_numbers(config_path))

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the numbers as a config to merge at top level."""
        config = OmegaConf.create(_numbers(config_path))
        return ConfigResult(self.provider, self.full_path(), config, {"package": "_global_"})

    def available(self) -> bool:
        """Return True."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Return False: nobody chooses from it."""
        return False

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return nothing: there is nothing to list."""
        return []


class LossNumbersPath(SearchPathPlugin):
    """Plugin that adds the source to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the source."""
        search_path.append("kd", f"{COMPUTED}://")


def _numbers(config_path: str) -> dict[str, object]:
    """Return what to merge after the experiment: the loss file's numbers, then the authors'."""
    group, *choices = config_path.removesuffix(".yaml").split("/")
    if group != GROUP or len(choices) != 3 or not GlobalHydra.instance().is_initialized():
        return {}
    *groups, pair = choices
    experiments, losses = (group.split(",") for group in groups)
    found: dict[str, object] = {}
    for knob in KNOBS:
        recipes = [each for each in experiments if knob in _knobs(f"experiment/{each}")]
        own = [_knobs(f"loss/{each}") for each in losses]
        values = [knobs[knob] for knobs in own if knob in knobs]
        if recipes and values and not _stays(recipes[-1], knob, losses):
            found[knob] = values[-1]
    tables = [
        table for each in experiments if (table := config_file(f"authors/{each}")) is not None
    ]
    return found | _of_the_authors(tables[-1], losses[-1], pair) if tables else found


def _stays(experiment: str, knob: str, losses: list[str]) -> bool:
    """Whether an experiment's number holds: it names one of these losses, or has a schedule."""
    is_schedule = isinstance(_knobs(f"experiment/{experiment}")[knob], Mapping)
    return is_schedule or _experiment_loss(f"experiment/{experiment}") in losses


def _of_the_authors(table: DictConfig, loss: str, pair: str) -> dict[str, object]:
    """Return the published numbers for the pair, or for any, with their source for the report.

    Rows of the method `any` hold beside those of the loss.
    """
    nested = OmegaConf.create()
    for row in table.rows:
        if row.method == "any" and fnmatchcase(pair, row.pair):
            _merge(nested, row.value)
    whose = OURS
    own = {row.pair: row for row in table.rows if row.method == loss and row.pair in (pair, "any")}
    if row := own.get(pair, own.get("any")):
        whose = f"{row.source}, for {'any pair' if row.pair == 'any' else pair}"
        _merge(nested, row.value)
    numbers = OmegaConf.to_container(nested)
    return {**numbers, "numbers_from": whose}  # type: ignore[dict-item]


def _merge(nested: DictConfig, values: DictConfig) -> None:
    for key, value in values.items():
        OmegaConf.update(nested, str(key), value)


def _knobs(path: str) -> dict[str, object]:
    """Return `alpha` and `temperature` as set by a file or its parents."""
    found: dict[str, object] = {}
    for part in _parts(path):
        found |= {knob: part[knob] for knob in KNOBS if knob in part}
    return found


def _experiment_loss(path: str) -> str | None:
    """Return the loss that an experiment names, or the command's default."""
    named = [part["override"] for part in _parts(path) if part.get("override")]
    return str(named[-1]) if named else _default_loss()


def _default_loss() -> str | None:
    primary = config_file("train")
    defaults = primary.get("defaults", []) if primary is not None else []
    return next((str(each.loss) for each in defaults if "loss" in each), None)


def _parts(path: str) -> Iterator[dict[str, object]]:
    """Iterate over the files that compose a file, itself last: their numbers, and their loss."""
    file = config_file(path)
    if file is None:
        return
    named = None
    for entry in file.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            yield from _parts(f"{path.rpartition('/')[0]}/{entry}")
        elif isinstance(entry, Mapping):
            named = entry.get("override /loss", entry.get("override loss", named))
    # Unresolved, since references point to other files.
    whole = OmegaConf.to_container(file, resolve=False)
    assert isinstance(whole, dict)
    yield {**{str(key): value for key, value in whole.items()}, "override": named}


Plugins.instance().register(LossNumbers)
Plugins.instance().register(LossNumbersPath)
