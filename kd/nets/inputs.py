"""What the layers of a net are given."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kd.shape import Shape


def inputs_of(
    modules: Iterable[nn.Module], net: nn.Module, shape: Shape
) -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
    """Show a net blank images [2, C, H, W]; returns modules in forward order, and their inputs.

    Inputs have the shapes that the layers see, [2, ...]. The net's modes stay as they are.
    """
    met: list[tuple[nn.Module, tuple[Tensor, ...]]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        met.append((module, inputs))

    hooks = [module.register_forward_hook(note) for module in modules]
    modes = {module: module.training for module in net.modules()}
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(2, *shape.pixels, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return met
