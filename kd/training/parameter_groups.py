"""Parameter groups: no weight decay on norms and biases, lower learning rates in lower layers."""

from collections.abc import Iterable, Mapping

from torch import nn


def parameter_groups(
    net: nn.Module,
    extra: Iterable[nn.Parameter] = (),
    *,
    decay_norms: bool = True,
    layer_decay: float | None = None,
    dimensions: Mapping[nn.Parameter, int] | None = None,
) -> list[dict[str, object]]:
    """Group trainable parameters for a torch optimiser; a single group if all are treated alike.

    Args:
        net: its parameters come in their order in the net.
        extra: parameters of the loss; treated like the net's last layer.
        decay_norms: False removes weight decay from norms and biases, so from all one-dimensional
            parameters (Goyal et al. 2017, section 5.3; He et al. 2019, section 3.1). It also
            removes it from what a timm net lists in `no_weight_decay`.
        layer_decay: factor per layer below the last, as `lr_scale`, in (0, 1] (Clark et al. 2020,
            ELECTRA; Bao et al. 2021, BEiT). A layer is a path up to its first number: `layer1.0`,
            `blocks.3`, `fc`. None gives all the same rate.
        dimensions: of the whole parameters, where a strategy such as FSDP has left flat parts of
            them; None where they are whole.
    """
    dimensions = dimensions or {}
    of_timm: object = getattr(net, "no_weight_decay", None)
    exempt = set(of_timm()) if callable(of_timm) else set[str]()
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    depth = _depths([name for name, p in named if dimensions.get(p, p.ndim) > 1])
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    last = len(set(depth.values())) - 1
    at = 0
    for name, p in named:
        at = depth.get(_layer(name), at)
        scale = 1.0 if layer_decay is None else layer_decay ** (last - at)
        decays = decay_norms or (dimensions.get(p, p.ndim) > 1 and name not in exempt)
        groups.setdefault((decays, scale), []).append(p)
    for p in extra:
        if p.requires_grad:
            decays = decay_norms or dimensions.get(p, p.ndim) > 1
            groups.setdefault((decays, 1.0), []).append(p)
    return [
        {
            "params": params,
            **({} if decays else {"weight_decay": 0.0}),
            **({} if layer_decay is None else {"lr_scale": scale}),
        }
        for (decays, scale), params in groups.items()
    ]


def _depths(names: Iterable[str]) -> dict[str, int]:
    """Number the layers from 0; only those with a multi-dimensional parameter count."""
    layers = dict.fromkeys(map(_layer, names))
    return {layer: place for place, layer in enumerate(layers)}


def _layer(name: str) -> str:
    parts = name.split(".")[:-1]
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1])
