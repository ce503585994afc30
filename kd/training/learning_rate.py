"""Learning-rate schedules, per step."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

# Shares of the steps at which the rate drops to a tenth: He et al. 2015 on CIFAR-10; epochs 150,
# 180 and 210 of 240 in Tian et al. 2020, section 4.
FALLS = {"step": (1 / 2, 3 / 4), "step_late": (5 / 8, 3 / 4, 7 / 8)}


def make_schedule_of_rate(
    optimizer: Optimizer, schedule: str | Mapping[str, object], steps: int, epochs: float
) -> LRScheduler:
    """Build the learning-rate scheduler, stepped per batch; groups keep their ratio to `lr`.

    Args:
        schedule: `onecycle` warms up to `lr` over the first 30 % and anneals to almost nothing
            (Smith & Topin 2017, as in torch). `cosine` anneals from `lr` to 0 (Loshchilov & Hutter
            2016, without restarts). `warmup_cosine` rises linearly to `lr` over `warmup` epochs,
            null for a twentieth of the steps, then anneals to `end` times `lr`. `milestones`
            multiplies by `factor` after each of the epochs `at`, after a `warmup`. `step` divides
            by 10 at 1/2 and 3/4 of the steps, `step_late` at 5/8, 3/4 and 7/8. `triangular` rises
            linearly from a fifth of `lr` to `lr` over the first 23 %, and falls linearly to 7 %
            (Jordan 2024). `constant` keeps `lr`.
        steps: batches in the whole stage, > 0.
        epochs: length of the stage in epochs.
    """
    node: dict[str, Any] = {"schedule": schedule} if isinstance(schedule, str) else dict(schedule)
    name = node["schedule"]
    each = steps / max(1.0, epochs)
    rates = [group["lr"] for group in optimizer.param_groups]
    if name == "onecycle":
        moves = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
        return OneCycleLR(optimizer, rates, max(steps, 2), cycle_momentum=moves)
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if name == "triangular":
        return OneCycleLR(
            optimizer,
            rates,
            max(steps, 2),
            pct_start=0.23,
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=5,
            final_div_factor=1 / (5 * 0.07),
        )
    factor: Callable[[int], float] = lambda step: 1.0  # noqa: E731
    if name == "warmup_cosine":
        warmup = steps / 20 if node["warmup"] is None else node["warmup"] * each
        factor = partial(_warmup_cosine, steps=steps, warmup=warmup, end=node["end"])
    elif name == "milestones":
        falls = [round(epoch * each) for epoch in node["at"]]
        factor = partial(_falling, falls=falls, by=node["factor"], warmup=node["warmup"] * each)
    elif name in FALLS:
        factor = partial(_falling, falls=[int(steps * share) for share in FALLS[name]])
    return LambdaLR(optimizer, factor)


def _warmup_cosine(step: int, steps: int, warmup: float, end: float) -> float:
    if step + 1 < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1.0, steps - warmup)) if step > warmup else 0.0
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))


def _falling(step: int, falls: list[int], by: float = 0.1, warmup: float = 0.0) -> float:
    risen = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return float(risen * by ** sum(step >= fall for fall in falls))
