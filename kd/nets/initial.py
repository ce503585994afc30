"""How nets of convolutions start."""

from torch import nn


def kaiming(net: nn.Module) -> None:
    """Draw the convolutions' weights so that gradients keep their size (He et al. 2015, eq. 14); their biases are 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
