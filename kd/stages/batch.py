"""Batch sizes limited by the amount of data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kd.config.schema import Config
from kd.data.base import DataModule
from kd.log import say
from kd.stages.chain import StagePlan


def fit_batch(plan: StagePlan, data: DataModule, trainer: Mapping[str, Any]) -> StagePlan:
    """Limit a stage's batch size to what its training images fill; logs a reduction.

    Args:
        trainer: Trainer config, for the number of devices that share the images.
    """
    if plan.trains == "none":
        return plan
    images = data.for_stage(plan.sees).images_an_epoch
    most = images // (trainer.get("devices", 1) * trainer.get("num_nodes", 1))
    if not 0 < most < plan.recipe.batch_size:  # an empty part is refused where batches are made
        return plan
    say(
        f"{plan.name}: {images} training images do not fill {plan.recipe_at}batch_size="
        f"{plan.recipe.batch_size}, so its batches are of {most}"
    )
    return replace(plan, recipe=plan.recipe.model_copy(update={"batch_size": most}))


def with_batches(config: Config, chain: Sequence[StagePlan]) -> Config:
    """Return the config with the chain's actual batch sizes."""
    top = config.batch_size
    teacher = config.teacher.batch_size
    stages = dict(config.stage)
    for plan in chain:
        found = plan.recipe.batch_size
        own = stages.get(plan.name)
        if own and own.batch_size is not None:
            stages[plan.name] = own.model_copy(update={"batch_size": found})
        elif plan.recipe_at == "teacher." and found < teacher:
            teacher = found
        elif plan.recipe_at == "" and found < top:
            top = found
    net = config.teacher.model_copy(update={"batch_size": teacher})
    return config.model_copy(update={"batch_size": top, "teacher": net, "stage": stages})
