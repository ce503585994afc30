"""Initialisation of convolutional nets."""

from torch import nn


def kaiming(net: nn.Module) -> None:
    """Initialise convolutions to keep the scale of gradients (He et al. 2015, eq. 14); biases are
    0.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
