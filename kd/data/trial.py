"""A part of the validation and test images, for trial runs whose figures do not count."""

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from kd.config.trainer import TRIAL_BATCH, batches_of, is_trial
from kd.data.base import DataModule, Images
from kd.data.parts import strata

D = TypeVar("D", bound=DataModule)


def shorten(data: D, options: Mapping[str, object], least: int = 1) -> D:
    """Limit validation and test images as the Trainer's options say; changes and returns the data.

    All uses see the limited parts: validation, the watch over the teacher, the test.

    Args:
        options: `limit_val_batches` and `limit_test_batches` count, as in
            `kd.config.trainer.Options`.
        least: minimum number of images.

    Raises:
        UserError: an option leaves none.
    """
    for part in ("val", "test"):
        if (name := f"limit_{part}_batches") in options:
            images: Images = getattr(data.split, part)
            if not images:  # data.val_fraction=0
                continue
            size = min(images.pixels.batch, TRIAL_BATCH if is_trial(options) else sys.maxsize)
            batches = batches_of(options, name, math.ceil(len(images) / size))
            kept = _by_turns(images, max(least, batches * size))
            data.split = replace(data.split, **{part: kept})  # type: ignore[arg-type]
    if (of_teacher := data.for_stage("all")) is not data:
        shorten(of_teacher, options, least)
    return data


def _by_turns(images: Images, count: int) -> Images:
    """Take the first image of each class, then the second of each, and so on; `count` in all."""
    turn = torch.empty(len(images), dtype=torch.int64)
    labels = strata(images.labels)
    sizes = torch.bincount(labels).tolist()
    turn[labels.argsort(stable=True)] = torch.cat([torch.arange(size) for size in sizes])
    return images.at(turn.argsort(stable=True)[:count].sort().values)
