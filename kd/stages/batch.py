"""Batch sizes limited by the amount of data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kd.config.schema import Config
from kd.data.base import DataModule
from kd.log import say
from kd.stages.chain import StagePlan
from kd.training.devices import world_size


def fit_batch(plan: StagePlan, data: DataModule, trainer: Mapping[str, object]) -> StagePlan:
    """Limit a stage's batch size to what its training images fill; logs a reduction.

    Args:
        trainer: Trainer config, for the number of devices that share the images.
    """
    if plan.trains == "none":
        return plan
    images = data.for_stage(plan.sees).images_an_epoch
    most = images - images % world_size(trainer)
    if not 0 < most < plan.recipe.batch_size:  # an empty part is refused where batches are made
        return plan
    say(
        f"{plan.name}: {images} training images do not fill {plan.recipe_at}batch_size="
        f"{plan.recipe.batch_size}, so its batches are of {most}"
    )
    return replace(plan, recipe=plan.recipe.model_copy(update={"batch_size": most}))


def with_batches(config: Config, chain: Sequence[StagePlan]) -> Config:
    """Return the config with the chain's actual batch sizes, over all devices."""
    own = {name for name, stage in config.stage.items() if stage.batch_size is not None}
    stages = dict(config.stage)
    found = dict[str, int]()
    for plan in chain:
        size = plan.recipe.batch_size
        at = plan.recipe_at
        if plan.name in own:
            stages[plan.name] = stages[plan.name].model_copy(update=_batch(size))
        else:
            found[at] = min(size, found.get(at, size))
    net = config.teacher.model_copy(update=_batch(found.get("teacher.")))
    return config.model_copy(update={**_batch(found.get("")), "teacher": net, "stage": stages})


def _batch(size: int | None) -> dict[str, int | None]:
    """Return the changes to a recipe whose batch size is known; none for None."""
    return {} if size is None else {"batch_size": size, "batch_size_per_device": None}
