"""Optimisers from config nodes, with parameter groups."""

import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd.config.construct import construct, parameters_of, resolve_target
from kd.errors import UserError, nearest
from kd.training.learning_rate import make_schedule_of_rate
from kd.training.parameter_groups import parameter_groups

# Keys of an optimiser node that define parameter groups; the others are keywords.
GROUPING = ("decay_norms", "layer_decay")


def make_optimizer(
    net: nn.Module,
    steps: int,
    *,
    optim: Mapping[str, object],
    schedule: str | Mapping[str, object],
    epochs: float = 1.0,
    extra: Iterable[nn.Parameter] = (),
    clips: bool = False,
    dimensions: Mapping[nn.Parameter, int] | None = None,
    where: str = "optim",
) -> tuple[Optimizer, LRScheduler]:
    """Build an optimiser from its config node, with its learning-rate schedule, stepped per batch.

    Args:
        net: its frozen parameters are left out.
        steps: batches in the whole stage, > 0.
        optim: `_target_` and keywords of a `torch.optim` class. `decay_norms` and `layer_decay` as
            in `kd.training.parameter_groups`; without them weight decay and learning rate are equal
            for all.
        schedule: see `kd.training.learning_rate`.
        epochs: length of the stage in epochs.
        extra: parameters of the loss.
        clips: whether gradients are clipped, which Lightning refuses for fused optimisers.
        dimensions: as `kd.training.parameter_groups`.

    Raises:
        UserError: the node gives no optimiser, or the learning rate is not finite.
    """
    grouping: dict[str, Any] = {
        name: optim[name] for name in GROUPING if optim.get(name) is not None
    }
    _check_grouping(grouping, where)
    node = {name: value for name, value in optim.items() if name not in GROUPING}
    if not _decays(node, where):
        grouping["decay_norms"] = True  # no decay to take from them
    extra = list(extra)
    outer = [*extra, *[p for p in net.parameters() if p.ndim > 1][-1:]]
    groups = parameter_groups(net, extra, dimensions=dimensions, **grouping)
    device = next(net.parameters()).device.type
    extra_options = {"fused": True} if device == "cuda" and not clips else {}
    optimizer = construct(node, where, params=groups, outer=outer, **extra_options)
    if not isinstance(optimizer, Optimizer):
        raise UserError(
            f"{where}._target_: {optim['_target_']} gave a {type(optimizer).__name__}, not an "
            "optimiser"
        )
    for group in optimizer.param_groups:
        if not math.isfinite(group["lr"]):  # torch accepts infinity
            raise UserError(f"{where}.lr: found {group['lr']}, accepted is a finite number from 0")
        group["lr"] *= group.get("lr_scale", 1.0)
    return optimizer, make_schedule_of_rate(optimizer, schedule, steps, epochs)


def _check_grouping(grouping: Mapping[str, object], where: str) -> None:
    decay = grouping.get("layer_decay", 1.0)
    norms = grouping.get("decay_norms", True)
    if not isinstance(decay, (int, float)) or isinstance(decay, bool) or not 0 < decay <= 1:
        raise UserError(
            f"{where}.layer_decay: found {decay!r}, accepted is a number above 0, up to 1, or null"
        )
    if not isinstance(norms, bool):
        raise UserError(f"{where}.decay_norms: found {norms!r}, accepted are true, false")


def _decays(node: Mapping[str, object], where: str) -> bool:
    """Whether the optimiser has weight decay."""
    target, keywords = resolve_target(node, where)
    default = parameters_of(target).get("weight_decay")
    return bool(keywords.get("weight_decay", default.default if default else 0))


def needs_whole(optim: Mapping[str, object], where: str = "optim") -> bool:
    """Whether an optimiser moves a weight otherwise when it gets the weight in flat parts.

    So do those that use a layer's norm or shape: LARS, LAMB, Muon, Adafactor. Two steps on random
    numbers show it.

    Args:
        optim: as of `make_optimizer`.

    Raises:
        UserError: the node gives no optimiser.
    """
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(3, 4, 6, generator=generator)
    node = {name: value for name, value in optim.items() if name not in GROUPING}
    try:
        whole = _weight_after(node, where, start, gradients).flatten()
    except RuntimeError:  # it asks for more than gradients, or for a GPU
        return False
    halves = slice(12), slice(12, 24)
    flat = start.flatten(), [each.flatten() for each in gradients]
    try:
        parts = [_weight_after(node, where, flat[0][at], [g[at] for g in flat[1]]) for at in halves]
    except UserError:  # it takes no vectors
        return True
    return not torch.allclose(whole, torch.cat(parts))


def _weight_after(
    node: Mapping[str, object], where: str, start: Tensor, gradients: Iterable[Tensor]
) -> Tensor:
    """Return a parameter after a step of an optimiser for each gradient."""
    parameter = nn.Parameter(start.clone())
    optimizer = construct(node, where, params=[parameter])
    for parameter.grad in gradients:
        optimizer.step()
    return parameter.detach()


def timm_optimizer(
    params: Iterable[object], name: str, lr: float, weight_decay: float = 0.0, **options: object
) -> Optimizer:
    """Build an optimiser of timm by name: `lion`, `adabelief`, `lookahead_adamw`.

    Args:
        options: passed to it, e.g. `momentum=0.9`.

    Raises:
        UserError: timm is not installed.
        ValueError: unknown name.
    """
    timm = _timm_optim()
    if name.removeprefix("lookahead_") not in (known := timm.list_optimizers()):
        raise ValueError(f"name: timm has no optimiser {name!r}{nearest(name, known)}")
    found: Optimizer = timm.create_optimizer_v2(
        params, opt=name, lr=lr, weight_decay=weight_decay, filter_bias_and_bn=False, **options
    )
    return found


def _timm_optim() -> ModuleType:
    try:
        import timm.optim
    except ImportError:
        raise UserError("optim=timm: timm is not installed; install it: pip install timm") from None
    return timm.optim
