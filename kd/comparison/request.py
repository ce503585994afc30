"""Request to `kd.compare`, checked before torch is imported."""

import functools
from collections.abc import Collection

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pydantic import NonNegativeInt, PrivateAttr

from kd.command import typed_keys
from kd.config.fields import Seed
from kd.config.schema import Config, check_training
from kd.tuning.request import Request, SearchSettings, compose_request

# Keys of the comparison itself; a trial and a final run have their own seed.
APART = {"n_trials", "trial_seed", "dry_run", "seed", "name", "sweep", "hydra", "logger"}


class CompareConfig(Config, SearchSettings):
    """Config of one job of `kd.compare`: a method, a pair of nets and a seed.

    Attributes:
        n_trials: of the method's search; 0 for none.
        trial_seed: seed of all trials.
        dry_run: only say how long all jobs would take.
    """

    n_trials: NonNegativeInt
    trial_seed: Seed
    dry_run: bool
    _overrides: tuple[str, ...] = PrivateAttr(())
    _nets: str = PrivateAttr("")
    _method: str = PrivateAttr("")

    @property
    def nets(self) -> str:
        """Teacher and student, as `resnet56_to_resnet20`."""
        return self._nets

    @property
    def method(self) -> str:
        """File of the loss."""
        return self._method

    def request(self) -> Request:
        """Return the search for the method's numbers with this pair; equal for all seeds."""
        own = [word for word in self._overrides if not _is_apart(word)]
        if not any(word.startswith("search=") for word in own):
            own.append("search=method")
        return _request((*own, f"seed={self.trial_seed}", f"n_trials={max(1, self.n_trials)}"))


@functools.cache  # the jobs of all seeds share it
def _request(task: tuple[str, ...]) -> Request:
    return compose_request(task)


def _is_apart(word: str) -> bool:
    return bool(typed_keys([word.replace("/", ".")]) & APART)


def check(cfg: DictConfig, typed: Collection[str] = ()) -> CompareConfig:
    """Validate the composed config of a job.

    Raises:
        UserError: one line per wrong key.
    """
    config = check_training(CompareConfig, cfg, typed)
    chosen = HydraConfig.get().runtime.choices
    config._nets = f"{chosen['teacher']}_to_{chosen['student']}"
    config._method = str(chosen["loss"])
    # A dry run asks for the jobs of the true one
    return config.model_copy(update={"dry_run": False})
