"""Names of a sweep's folder and runs: equal for equal overrides, different for different ones."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import Container, OmegaConf

from kd.config.schema import Training

# Keys that a run's name already shows.
SHOWN = {
    "data",
    "model",
    "teacher",
    "student",
    "loss",
    "experiment",
    "alpha",
    "temperature",
    "seed",
}

# Groups whose files choose those of other groups.
PICKED = {"model": {"teacher", "student"}, "incremental/method": {"loss"}}

# Keys without influence on a sweep's name: forced, or with other loggers, it is the same sweep.
APART = {"force", "debug", "pictures", "output_dir", "name", "sweep", "dry_run", "logger"}


def sweep_name(*, _root_: Container) -> str:
    """Return the name of a sweep's folder: the runs' common name, the swept keys, and a hash.

    Equal overrides give equal names, so that the same command finds what is done. `name=` is used
    as typed.
    """
    words = overrides_of(_root_)
    given = {each.get_key_element(): each for each in words}
    if "name" in given and not given["name"].is_sweep_override():
        return str(given["name"].value())
    keys = swept_keys(_root_, words)
    hidden = keys.union(*(picked for key, picked in PICKED.items() if key in keys))
    choices = OmegaConf.select(_root_, "hydra.runtime.choices")
    shared = {
        name: choices.get(name) for name in ("data", "teacher", "student", "loss", "experiment")
    }
    parts = [
        value
        for name, value in shared.items()
        if value not in (None, "null") and name not in hidden
    ]
    if shared["teacher"] and not {"teacher", "student"} & hidden:
        parts[1 - ("data" in hidden)] += "_to"
    parts += [key.rpartition(".")[2] for key in given if key in keys]
    rest = sorted(
        str(each.input_line) for key, each in given.items() if key.partition(".")[0] not in APART
    )
    return (
        plain("_".join(parts), 100) + "_" + hashlib.sha256("\n".join(rest).encode()).hexdigest()[:6]
    )


def overrides_of(config: Container) -> list[Override]:
    """Return all overrides: those of a file in conf/sweep, then the command line's, which win."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    words = [f"{key}={value}" for key, value in params.items()]
    typed = OmegaConf.to_container(OmegaConf.select(config, "hydra.overrides.task"), resolve=False)
    assert isinstance(typed, list)
    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None  # needed for glob()
    return OverridesParser.create(loader).parse_overrides([*words, *map(str, typed)])


def swept_keys(config: Container, overrides: Sequence[Override]) -> set[str]:
    """Return the keys swept by the command line or conf/sweep, also if only one value is left."""
    swept = {each.get_key_element() for each in overrides if each.is_sweep_override()}
    return swept | set(OmegaConf.select(config, "hydra.sweeper.params") or ())


def run_names(runs: Sequence[tuple[Training, Sequence[str], Sequence[str]]]) -> list[str]:
    """Make a unique name for each run: add the swept values where usual names coincide.

    Args:
        runs: per run its config, its overrides, and the overrides that differ between runs.
    """
    times = Counter(config.name for config, *_ in runs)
    taken: list[str] = []
    for config, overrides, swept in runs:
        if times[config.name] == 1:
            taken.append(config.name)
            continue
        own = any(word.startswith("name=") for word in overrides)  # then the name does not show it
        words = [word.partition("=") for word in swept]
        more = [
            f"{key.rpartition('.')[2]}-{plain(value, 40)}"
            for key, _, value in words
            if own or key not in SHOWN
        ]
        name = _with(config, plain("_".join(more), 60))
        if name in taken:
            name = _with(config, hashlib.sha256(" ".join(swept).encode()).hexdigest()[:8])
        taken.append(name)
    return taken


def _with(config: Training, more: str) -> str:
    """Extend a run's name; the seed stays at its end."""
    seed = f"_s{config.seed}"
    return f"{config.name.removesuffix(seed)}_{more}{seed}"


def plain(text: str, longest: int) -> str:
    """Format text for a file name; a long one is cut, with a hash."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
    if len(found) <= longest:
        return found
    return f"{found[: longest - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
