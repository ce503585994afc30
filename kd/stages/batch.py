"""Batch sizes and lengths that suit the amount of data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kd.config.schema import Config, Recipe
from kd.data.base import DataModule
from kd.stages.chain import StagePlan, chain_of
from kd.stages.pretrained_choice import choose_weights
from kd.training.devices import world_size

SMALLEST = 8  # images of a batch that `min_batches` asks for: below, batch norm is unsteady


def suit_to_data(
    config: Config, data: DataModule, read: Sequence[StagePlan] | None = None
) -> tuple[Config, list[StagePlan]]:
    """Return config and chain with what is chosen by the data: weights, batch sizes and epochs.

    Args:
        read: the config's chain, where it was read already.
    """
    chosen = choose_weights(config, data)
    plans = read if read and chosen is config else chain_of(chosen)
    chain = [fit_recipe(plan, data, config.trainer) for plan in plans]
    return with_batches(chosen, chain), chain


def fit_recipe(plan: StagePlan, data: DataModule, trainer: Mapping[str, object]) -> StagePlan:
    """Choose a stage's batch size and epochs by its number of images; notes what it changes.

    Batches are no larger than the training images, and so small that an epoch has `min_batches`.
    There are as many epochs as `min_steps` takes.

    Args:
        trainer: Trainer config, for the number of devices that share the images.
    """
    if plan.trains == "none":
        return plan
    images = data.for_stage(plan.sees).images_an_epoch
    ranks = world_size(trainer)
    shared = images - images % ranks
    if not shared:  # refused where batches are made
        return plan
    recipe = plan.recipe
    at = plan.recipe_at
    size = _batch(recipe, shared, ranks)
    if size < recipe.batch_size:
        few = f"{images} training images do not fill {at}batch_size={recipe.batch_size}"
        if size < min(recipe.batch_size, shared):
            asked = f"{at}min_batches={recipe.min_batches}"
            few = f"{asked} shares out {images} training images"
            if size == SMALLEST * ranks:
                tiny = shared // recipe.min_batches
                few = f"{asked} would make batches of {tiny}, too few for norms"
        data.note(f"{plan.name}: {few}, so its batches are of {size}")
    batches = batches_an_epoch(recipe.model_copy(update={"batch_size": size}), shared)
    epochs = recipe.epochs
    if epochs and not trainer.get("max_epochs"):  # which a trial has
        epochs = max(epochs, math.ceil(recipe.min_steps / batches))
    if epochs > recipe.epochs:
        data.note(
            f"{plan.name}: an epoch has {batches} batches, so {at}min_steps={recipe.min_steps} "
            f"makes {epochs} epochs out of {recipe.epochs}; {at}epochs=N takes N"
        )
    return replace(plan, recipe=recipe.model_copy(update={"batch_size": size, "epochs": epochs}))


def _batch(recipe: Recipe, images: int, ranks: int) -> int:
    """Return the batch size over all devices, for images that they share equally."""
    size = recipe.batch_size
    if recipe.min_batches:
        fitting = max(SMALLEST * ranks, images // recipe.min_batches // ranks * ranks)
        size = min(size, fitting)
    return min(size, images)


def batches_an_epoch(recipe: Recipe, images: int) -> int:
    """Return how many batches the images make."""
    full, left = divmod(images, recipe.batch_size)
    return full + (left > 0 and not recipe.drop_last)


def with_batches(config: Config, chain: Sequence[StagePlan]) -> Config:
    """Return the config with the chain's actual batch sizes, over all devices, and epochs."""
    stages = dict(config.stage)
    found = dict[str, dict[str, int | None]]()
    for plan in chain:
        at = plan.recipe_at
        if plan.trains == "none":
            continue
        # Stages that share a key take as many steps, whatever they see
        found[at] = {name: getattr(plan.recipe, name) for name in ("batch_size", "epochs")}
        found[at]["batch_size_per_device"] = None
        if at == f"stage.{plan.name}.":
            stages[plan.name] = stages[plan.name].model_copy(update=found[at])
    net = config.teacher.model_copy(update=found.get("teacher."))
    return config.model_copy(update={**found.get("", {}), "teacher": net, "stage": stages})
