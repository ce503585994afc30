"""What the defaults list of `conf/train.yaml` chooses by what is chosen already.

Resolvers for it: the choice of a group, and the data, student and optimiser that go with others.
"""

from collections.abc import Mapping

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

COMPUTED = "kd"  # scheme of the config source that is no folder: kd.config.loss_numbers


def config_file(path: str) -> DictConfig | None:
    """Load a config file from Hydra's search path; None if there is none."""
    loader = GlobalHydra.instance().config_loader()
    for source in loader.get_sources():
        if source.scheme() != COMPUTED and source.is_config(path):
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
    return "sgd" if config_file(f"recipe/optim/{data}/{student}/sgd") else "adamw"


OmegaConf.register_new_resolver("chosen", _choice, replace=True)
OmegaConf.register_new_resolver("digits_for_search", _digits_for_search, replace=True)
OmegaConf.register_new_resolver("optim_for_student", _optim_for_student, replace=True)
OmegaConf.register_new_resolver("student_for_data", _student_for_data, replace=True)
