"""Last layer of a net, and training it alone."""

from torch import nn

from kd.nets.inputs import inputs_of
from kd.shape import Shape


def head_of(net: nn.Module, shape: Shape) -> dict[str, nn.Module]:
    """Find the layers that give the logits, by path; several if a net averages several.

    It is the layer that the net names itself, as in timm (`get_classifier`). Otherwise it is the
    last linear layer or convolution of the forward pass with one output per class.

    Raises:
        ValueError: there is no such layer, or a layer with parameters follows it.
    """
    if callable(own := getattr(net, "get_classifier", None)):
        named = own()
        found = list(named) if isinstance(named, tuple) else [named]
    else:
        found = _in_order(net, shape)[-1:]
        if not found or not _gives(found[0], shape.num_classes):
            raise ValueError(
                f"{type(net).__name__} does not end in a layer with {shape.num_classes} outputs"
            )
    return {
        path: module
        for path, module in net.named_modules()
        if any(module is each for each in found)
    }


def head_tensors(net: nn.Module, shape: Shape) -> list[str]:
    """Return the names of the last layer's tensors in the state dict."""
    return [
        f"{path}.{name}" if path else name
        for path, module in head_of(net, shape).items()
        for name in module.state_dict()
    ]


def _gives(module: nn.Module, classes: int) -> bool:
    return classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None))


def _in_order(net: nn.Module, shape: Shape) -> list[nn.Module]:
    """Return the modules with parameters of their own, in forward order."""
    own = [
        module
        for module in net.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    return [module for module, _ in inputs_of(own, net, shape)]


def freeze_body(net: nn.Module, shape: Shape) -> None:
    """Freeze all parameters except those of the last layer."""
    net.requires_grad_(False)
    for module in head_of(net, shape).values():
        module.requires_grad_(True)


def still_body(net: nn.Module) -> None:
    """Put frozen modules into evaluation mode: no batch-norm updates, no dropout."""
    net.eval()
    for module in net.modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            module.train()
