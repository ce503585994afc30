"""Any classification net of torchvision, by its name there."""

import difflib
from typing import Any

import torchvision.models
from torch import nn


def torchvision_net(name: str, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    """Build a torchvision classification net with fresh weights.

    Input [B, in_channels, H, W], output logits [B, num_classes]. For other than 3 channels the first convolution is
    replaced by one that takes them.

    Args:
        name: as in `torchvision.models.list_models(module=torchvision.models)`, e.g. `mobilenet_v3_small`.
        options: passed on to torchvision's builder, e.g. `dropout=0.1`.

    Raises:
        ValueError: for a name that torchvision does not have, with the nearest that it has.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(f"name: torchvision has no net {name!r}; nearest: {', '.join(close) or 'none'}")
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True, **options}  # auxiliary heads return a tuple in training
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if in_channels != 3:
        _replace_first_convolution(net, in_channels)
    return net


def _replace_first_convolution(net: nn.Module, in_channels: int) -> None:
    path, old = next((path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d))
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, new)
