"""Training a net as its int8 file will compute: weights and activations rounded to 8 bits on the way."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = torch.finfo(torch.float32).tiny  # of a scale: a channel of zeros has none


def rounded_weights(weight: Tensor) -> Tensor:
    """Weights as `kd.shipping.formats.quantize` rounds them: symmetric, 255 levels, by output channel.

    The gradient passes as if nothing had been rounded (straight-through; Jacob et al. 2018, "Quantization and Training
    of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3). A batch norm after the layer
    changes nothing in this, as the exporter folds it into the weights by output channel.

    Args:
        weight: [output channels, ...].
    """
    largest = weight.detach().abs().flatten(1).amax(1)
    scale = (largest / 127).float().clamp(min=SMALLEST)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -127, 127)


def rounded_activations(x: Tensor) -> Tensor:
    """Activations rounded to 256 levels between the smallest and the largest of the batch, 0 among them.

    The file has ranges that are fixed by its calibration; those of a batch are near them, and need not be kept.
    """
    low, high = torch.aminmax(x.detach().float())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=SMALLEST)
    zero = (-low / scale).round().clamp(0, 255).int()
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255)


class RoundedConv2d(nn.Conv2d):
    """A convolution that rounds what goes in and what it multiplies with."""

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution."""
        found: Tensor = self._conv_forward(
            rounded_activations(x), rounded_weights(self.weight), self.bias
        )
        return found


class RoundedLinear(nn.Linear):
    """A linear layer that rounds what goes in and what it multiplies with."""

    def forward(self, x: Tensor) -> Tensor:
        """As the linear layer."""
        return F.linear(rounded_activations(x), rounded_weights(self.weight), self.bias)


ROUNDED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: RoundedConv2d,
    nn.Linear: RoundedLinear,
}


def fake_quantize(net: nn.Module) -> int:
    """Make a net's convolutions and linear layers round, in place; its parameters and their names stay as they are.

    Layers of other kinds, such as convolutions that compute something else, are left out.

    Returns:
        how many layers round.
    """
    count = 0
    for module in net.modules():
        for plain, rounded in ROUNDED.items():
            if isinstance(module, plain) and type(module).forward is plain.forward:
                module.__class__ = rounded
                count += 1
                break
    return count
