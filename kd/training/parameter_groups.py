"""Which parameters an optimiser treats alike: no weight decay on norms and biases, lower rates in lower layers."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def parameter_groups(
    net: nn.Module,
    extra: Iterable[nn.Parameter] = (),
    *,
    decay_norms: bool = True,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser, of what needs a gradient; one group where nothing tells parameters apart.

    Args:
        net: its parameters come in the order in which it holds them.
        extra: what a loss learns itself; the same as the net's last layer.
        decay_norms: False takes weight decay from norms and biases (all parameters of one dimension) and from what a
            net of timm names in `no_weight_decay` (Goyal et al. 2017, section 5.3; He et al. 2019, section 3.1).
        layer_decay: 1 for the last layer, and so much less for each layer below, as `lr_scale` (Clark et al. 2020,
            ELECTRA; Bao et al. 2021, BEiT). A layer is what comes before the first number in a path and that number:
            `layer1.0`, `blocks.3`, `fc`. None leaves all alike.
    """
    of_timm: Any = getattr(net, "no_weight_decay", None)
    exempt = set(of_timm()) if callable(of_timm) else set[str]()
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    depth = _depths([name for name, p in named if p.ndim > 1])
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    last = len(set(depth.values())) - 1
    at = 0
    for name, p in named:
        at = depth.get(_layer(name), at)
        scale = 1.0 if layer_decay is None else layer_decay ** (last - at)
        decays = decay_norms or (p.ndim > 1 and name not in exempt)
        groups.setdefault((decays, scale), []).append(p)
    for p in extra:
        if p.requires_grad:
            groups.setdefault((decay_norms or p.ndim > 1, 1.0), []).append(p)
    return [
        {
            "params": params,
            **({} if decays else {"weight_decay": 0.0}),
            **({} if layer_decay is None else {"lr_scale": scale}),
        }
        for (decays, scale), params in groups.items()
    ]


def _depths(names: Iterable[str]) -> dict[str, int]:
    """The layers' places, from 0; only those with a parameter of several dimensions count."""
    layers = dict.fromkeys(map(_layer, names))
    return {layer: place for place, layer in enumerate(layers)}


def _layer(name: str) -> str:
    parts = name.split(".")[:-1]
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1])
