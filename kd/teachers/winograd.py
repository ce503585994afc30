"""3x3 convolutions by a quarter of the multiplications, for a teacher on the CPU, who takes most of a run's time.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.3: F(4 x 4, 3 x 3). What cuDNN does
on a GPU, PyTorch does on no CPU.
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The transforms of the tiles of input, kernel and output, in that paper's names.
B_T = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
G = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
A_T = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]

TILE, PATCH = 4, 6  # a side of the output's tile, and of what of the input it depends on
CHANNELS = (
    128  # With fewer, turning tiles to and fro costs more than the multiplications that it saves.
)
PART = 2**15  # Tiles times channels at a time: 5 MB of patches, which stay in the cache.


class Winograd(nn.Conv2d):
    """A convolution with the same answers but for about a hundred thousandth of their size.

    It is the plain convolution still where that is no slower: under autocast, and for images of a height or width that
    whole tiles overlap by more than two fifths.

    Args:
        conv: the convolution, for which `fits` is true; its weights are not copied.
    """

    u: Tensor
    b_t: Tensor
    a_t: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        # On no device, so that nothing is drawn.
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            3,
            padding=1,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        g, b_t, a_t = (torch.tensor(rows, dtype=torch.float64) for rows in (G, B_T, A_T))
        u = torch.einsum("ij,ocjk,lk->ilco", g, conv.weight.detach().double(), g)
        for name, tensor in (
            ("u", u.flatten(0, 1)),
            ("b_t", torch.kron(b_t, b_t)),
            ("a_t", torch.kron(a_t, a_t)),
        ):
            self.register_buffer(name, tensor.float().contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, C', H, W]."""
        high, wide = (-(-side // TILE) for side in x.shape[2:])
        waste = high * wide * TILE**2 > 1.4 * x.shape[2] * x.shape[3]
        if (
            waste
            or x.device.type != "cpu"
            or x.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(x)
        parts = torch.split(x, max(1, PART // (high * wide * x.shape[1])))
        return torch.cat([self._of(part, high, wide) for part in parts]).permute(0, 3, 1, 2)

    def _of(self, x: Tensor, high: int, wide: int) -> Tensor:
        """The answers to a few images, [B, H, W, C']."""
        height, width = x.shape[2:]
        x = F.pad(
            x.permute(0, 2, 3, 1), (0, 0, 1, TILE * wide - width + 1, 1, TILE * high - height + 1)
        )
        patches = (
            x.unfold(1, PATCH, TILE)
            .unfold(2, PATCH, TILE)
            .permute(4, 5, 0, 1, 2, 3)
            .reshape(PATCH**2, -1)
        )
        inner = (self.b_t @ patches).view(PATCH**2, -1, self.in_channels)
        tiles = self.a_t @ torch.bmm(inner, self.u).view(PATCH**2, -1)
        y = tiles.view(TILE, TILE, len(x), high, wide, -1).permute(2, 3, 0, 4, 1, 5)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(len(x), TILE * high, TILE * wide, -1)[:, :height, :width]


def fits(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution that becomes quicker."""
    return (
        type(module) is nn.Conv2d  # no other kind, which may do something else with its weights
        and module.kernel_size == (3, 3)
        and module.stride == module.dilation == (1, 1)
        and module.padding in ((1, 1), "same")
        and module.padding_mode == "zeros"
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= CHANNELS
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


def quicker(net: nn.Module) -> None:
    """Put `Winograd` in the place of all convolutions of a net that it fits."""
    for parent in list(net.modules()):
        for name, module in list(parent.named_children()):
            if fits(module):
                setattr(parent, name, Winograd(module))
