"""Batch sizes limited by the amount of data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kd.config.schema import Config
from kd.data.base import DataModule
from kd.log import say
from kd.stages.chain import Link


def fitted(link: Link, data: DataModule, trainer: Mapping[str, Any]) -> Link:
    """Limit a stage's batch size to what its training images fill; logs a reduction.

    Args:
        trainer: Trainer config, for the number of devices that share the images.
    """
    if link.trains == "none":
        return link
    images = data.seen_by(link.sees).images_an_epoch
    most = images // (trainer.get("devices", 1) * trainer.get("num_nodes", 1))
    if not 0 < most < link.recipe.batch_size:  # an empty part is refused where batches are made
        return link
    say(
        f"{link.name}: {images} training images do not fill {link.recipe_at}batch_size="
        f"{link.recipe.batch_size}, so its batches are of {most}"
    )
    return replace(link, recipe=link.recipe.model_copy(update={"batch_size": most}))


def with_batches(config: Config, chain: Sequence[Link]) -> Config:
    """Return the config with the chain's actual batch sizes."""
    top, teacher, stages = config.batch_size, config.teacher.batch_size, dict(config.stage)
    for link in chain:
        found = link.recipe.batch_size
        own = stages.get(link.name)
        if own and own.batch_size is not None:
            stages[link.name] = own.model_copy(update={"batch_size": found})
        elif link.recipe_at == "teacher." and found < teacher:
            teacher = found
        elif link.recipe_at == "" and found < top:
            top = found
    net = config.teacher.model_copy(update={"batch_size": teacher})
    return config.model_copy(update={"batch_size": top, "teacher": net, "stage": stages})
