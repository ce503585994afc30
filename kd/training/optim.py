"""Optimisers from their config nodes, for the parameters that they are to treat alike."""

import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd.config.construct import construct, parameters_of, resolve_target
from kd.errors import UserError, nearest
from kd.training.learning_rate import make_schedule_of_rate
from kd.training.parameter_groups import parameter_groups

# Of an optimiser's node, what says how parameters are grouped; the rest is its own.
GROUPING = ("decay_norms", "layer_decay")


def make_optimizer(
    net: nn.Module,
    steps: int,
    *,
    optim: Mapping[str, Any],
    schedule: str | Mapping[str, Any],
    epochs: float = 1.0,
    extra: Iterable[nn.Parameter] = (),
    clips: bool = False,
    where: str = "optim",
) -> tuple[Optimizer, LRScheduler]:
    """An optimiser from its config node, and the schedule of its learning rate, to be stepped once a batch.

    Args:
        net: what of it needs no gradient is left out.
        steps: batches in the whole stage, > 0.
        optim: `_target_` and keywords of a `torch.optim` class; `decay_norms` and `layer_decay` as in
            `kd.training.parameter_groups`, weight decay on all and one rate for all where they are missing.
        schedule: see `kd.training.learning_rate`.
        epochs: that the steps are.
        extra: what the loss learns itself.
        clips: whether gradients are clipped, which Lightning refuses for fused optimisers.

    Raises:
        UserError: the node gives no optimiser, or one whose learning rate is no finite number.
    """
    grouping = {name: optim[name] for name in GROUPING if optim.get(name) is not None}
    _check_grouping(grouping, where)
    node = {name: value for name, value in optim.items() if name not in GROUPING}
    if not _decays(node, where):
        grouping["decay_norms"] = True  # there is nothing to take from them
    extra = list(extra)
    outer = [*extra, *[p for p in net.parameters() if p.ndim > 1][-1:]]
    groups = parameter_groups(net, extra, **grouping)
    device = next(net.parameters()).device.type
    offered = {"fused": True} if device == "cuda" and not clips else {}
    optimizer: Optimizer = construct(node, where, params=groups, outer=outer, **offered)
    if not isinstance(optimizer, Optimizer):
        raise UserError(
            f"{where}._target_: {optim['_target_']} gave a {type(optimizer).__name__}, not an optimiser"
        )
    for group in optimizer.param_groups:
        if not math.isfinite(group["lr"]):  # torch takes infinity
            raise UserError(f"{where}.lr: found {group['lr']}, accepted is a finite number from 0")
        group["lr"] *= group.get("lr_scale", 1.0)
    return optimizer, make_schedule_of_rate(optimizer, schedule, steps, epochs)


def _check_grouping(grouping: Mapping[str, Any], where: str) -> None:
    decay, norms = grouping.get("layer_decay", 1.0), grouping.get("decay_norms", True)
    if not isinstance(decay, (int, float)) or isinstance(decay, bool) or not 0 < decay <= 1:
        raise UserError(
            f"{where}.layer_decay: found {decay!r}, accepted is a number above 0, up to 1, or null"
        )
    if not isinstance(norms, bool):
        raise UserError(f"{where}.decay_norms: found {norms!r}, accepted are true, false")


def _decays(node: Mapping[str, Any], where: str) -> bool:
    """Whether the optimiser has weight decay at all."""
    target, keywords = resolve_target(node, where)
    default = parameters_of(target).get("weight_decay")
    return bool(keywords.get("weight_decay", default.default if default else 0))


def timm_optimizer(
    params: Iterable[Any], name: str, lr: float, weight_decay: float = 0.0, **options: Any
) -> Optimizer:
    """Any optimiser of timm, by its name there: `lion`, `adabelief`, `lookahead_adamw`.

    Args:
        options: passed on to it, e.g. `momentum=0.9`.

    Raises:
        UserError: timm is not installed.
        ValueError: it has no optimiser of that name.
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
