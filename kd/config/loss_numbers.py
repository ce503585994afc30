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
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig, OmegaConf

from kd.config.knobs import KNOBS

GROUP = "numbers"  # numbers/EXPERIMENT/LOSS/TEACHER_to_STUDENT
OURS = "the loss file's own, as the table of published numbers has none"


class LossNumbers(ConfigSource):
    """Config source for `numbers/EXPERIMENT/LOSS/PAIR`; contents are computed, not stored."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme before `://` in Hydra's search path."""
        return "kd"

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
        search_path.append("kd", "kd://")


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
    tables = [table for each in experiments if (table := _file(f"authors/{each}")) is not None]
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
    primary = _file("train")
    defaults = primary.get("defaults", []) if primary is not None else []
    return next((str(each.loss) for each in defaults if "loss" in each), None)


def _parts(path: str) -> Iterator[dict[str, object]]:
    """Iterate over the files that compose a file, itself last: their numbers, and their loss."""
    file = _file(path)
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


def _file(path: str) -> DictConfig | None:
    """Load a config file from Hydra's search path; None if there is none."""
    loader = GlobalHydra.instance().config_loader()
    for source in loader.get_sources():
        if not isinstance(source, LossNumbers) and source.is_config(path):
            try:
                found = source.load_config(path).config
            except HydraException:
                return None
            return found if isinstance(found, DictConfig) else None
    return None


def _choice(group: str, *, _root_: DictConfig) -> str:
    """Return the choice of a group for the defaults list: a file name, or several with commas."""
    choices = [
        each[group] for each in _root_["defaults"] if isinstance(each, Mapping) and group in each
    ]
    # Not by OmegaConf.select: `optim@teacher.optim` has a dot
    found = _root_.get(group, choices[-1] if choices else None)
    return ",".join(found) if isinstance(found, (list, ListConfig)) else str(found)


def _digits_for_search(*, _root_: DictConfig) -> str:
    """Return a command's own data. A search selects on validation labels, which the few lack.

    In train.yaml, since an override in tune.yaml would win over that of an experiment.
    """
    return "digits" if "search" in _root_ else "digits_few"


def _student_for_data(*, _root_: DictConfig) -> str:
    """Return a student. Few photographs need one that has weights to start from."""
    folder = _choice("data", _root_=_root_) == "image_folder"
    return "mobilenet_v3_small" if folder else "cnn"


def _optim_for_student(*, _root_: DictConfig) -> str:
    """Return an optimiser: SGD where the recipe of data and student has a rate for it."""
    data, student = (_choice(group, _root_=_root_) for group in ("data", "student"))
    return "sgd" if _file(f"recipe/optim/{data}/{student}/sgd") else "adamw"


OmegaConf.register_new_resolver("chosen", _choice, replace=True)
OmegaConf.register_new_resolver("digits_for_search", _digits_for_search, replace=True)
OmegaConf.register_new_resolver("optim_for_student", _optim_for_student, replace=True)
OmegaConf.register_new_resolver("student_for_data", _student_for_data, replace=True)
Plugins.instance().register(LossNumbers)
Plugins.instance().register(LossNumbersPath)
