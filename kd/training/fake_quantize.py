"""Quantization-aware training: weights and activations rounded to 8 bits, as in the int8 file."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = torch.finfo(torch.float32).tiny  # of a scale: an all-zero channel has none


def rounded_weights(weight: Tensor) -> Tensor:
    """Round weights like `kd.shipping.formats.quantize`: symmetric, 255 levels, per output channel.

    The gradient ignores the rounding (straight-through; Jacob et al. 2018, "Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3). A
    following batch norm changes nothing, because the exporter fuses it into the weights per output
    channel.

    Args:
        weight: [output channels, ...].

    Returns:
        the same shape.
    """
    largest = weight.detach().abs().flatten(1).amax(1)
    scale = (largest / 127).float().clamp(min=SMALLEST)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -127, 127)


def rounded_activations(x: Tensor) -> Tensor:
    """Round activations x [...] to 256 levels between the batch's minimum and maximum, incl. 0.

    The file has fixed ranges from calibration; those of a batch are close, and need not be stored.
    """
    low, high = torch.aminmax(x.detach().float())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=SMALLEST)
    zero = (-low / scale).round().clamp(0, 255).int()
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255)


class RoundedConv2d(nn.Conv2d):
    """Convolution with rounded input and weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [B, C, H, W] after rounding."""
        found: Tensor = self._conv_forward(
            rounded_activations(x), rounded_weights(self.weight), self.bias
        )
        return found


class RoundedLinear(nn.Linear):
    """Linear layer with rounded input and weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [B, ..., F] after rounding."""
        return F.linear(rounded_activations(x), rounded_weights(self.weight), self.bias)


ROUNDED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: RoundedConv2d,
    nn.Linear: RoundedLinear,
}


def fake_quantize(net: nn.Module) -> int:
    """Make a net's convolutions and linear layers round, in place; parameters and names stay.

    Subclasses that compute something else are left unchanged.

    Returns:
        the number of rounding layers.
    """
    count = 0
    for module in net.modules():
        for plain, rounded in ROUNDED.items():
            if isinstance(module, plain) and type(module).forward is plain.forward:
                module.__class__ = rounded
                count += 1
                break
    return count
