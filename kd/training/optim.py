"""Optimisers, and how their learning rate moves over a stage."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
)

from kd.config.construct import construct
from kd.config.fields import LearningRate
from kd.errors import UserError


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    steps: int,
    *,
    optim: Mapping[str, Any],
    schedule: LearningRate,
    where: str = "optim",
) -> tuple[Optimizer, LRScheduler]:
    """An optimiser from its config node, and the schedule of its learning rate, to be stepped once a batch.

    Args:
        parameters: those that need no gradient are left out.
        steps: batches in the whole stage, > 0.
        optim: `_target_` and keywords of a `torch.optim` class.
        schedule: `onecycle` warms up to `lr` over the first 30 % and anneals to almost nothing (Smith & Topin 2017,
            as in torch); `cosine` anneals from `lr` to 0 (Loshchilov & Hutter 2016, without restarts); `step` divides
            by 10 at 1/2 and 3/4 of the steps (He et al. 2015, on CIFAR-10); `step_late` at 5/8, 3/4 and 7/8, which are
            epochs 150, 180 and 210 of 240 (Tian et al. 2020, section 4); `triangular` rises in a line from a fifth of
            `lr` to all of it over the first 23 %, and falls in a line to 7 % (Jordan 2024); `constant` does nothing.

    Raises:
        UserError: the node gives no optimiser, or one whose learning rate is no finite number.
    """
    optimizer: Optimizer = construct(
        optim, where, params=[p for p in parameters if p.requires_grad]
    )
    if not isinstance(optimizer, Optimizer):
        raise UserError(
            f"{where}._target_: {optim['_target_']} gave a {type(optimizer).__name__}, not an optimiser"
        )
    lr = optimizer.param_groups[0]["lr"]
    if not math.isfinite(lr):  # torch takes infinity
        raise UserError(f"{where}.lr: found {lr}, accepted is a finite number from 0")
    match schedule:
        case "onecycle":
            return optimizer, OneCycleLR(
                optimizer,
                max_lr=lr,
                total_steps=max(steps, 2),
                cycle_momentum=_has_momentum(optimizer),
            )
        case "cosine":
            return optimizer, CosineAnnealingLR(optimizer, T_max=steps)
        case "step":
            return optimizer, MultiStepLR(optimizer, milestones=[steps // 2, steps * 3 // 4])
        case "step_late":
            return optimizer, MultiStepLR(
                optimizer, milestones=[steps * 5 // 8, steps * 3 // 4, steps * 7 // 8]
            )
        case "triangular":
            return optimizer, OneCycleLR(
                optimizer,
                max_lr=lr,
                total_steps=max(steps, 2),
                pct_start=0.23,
                anneal_strategy="linear",
                cycle_momentum=False,
                div_factor=5,
                final_div_factor=1 / (5 * 0.07),
            )
        case "constant":
            return optimizer, ConstantLR(optimizer, factor=1.0)


def _has_momentum(optimizer: Optimizer) -> bool:
    return "momentum" in optimizer.defaults or "betas" in optimizer.defaults
