"""How the numbers of images and maps lie in memory while a net trains."""

import torch
from torch import Tensor, nn

ROW = 16  # bfloat16 numbers of half a tile row of AMX; widths that this does not divide are padded in every layer


def layout_of(net: nn.Module, precision: str, device: torch.device) -> torch.memory_format:
    """Channels-last, which is faster for nearly all nets in all precisions; else contiguous.

    The exception is a CPU with AMX in bf16, for a net most of whose convolution weights are in layers with a width
    that is no multiple of 16. There a ResNet-14 of widths 13, 13, 26, 52 took 0.69 ms an image contiguous and 1.42
    channels-last (two cores, batches of 128). Without AMX channels-last is faster for that net too.

    It goes by the net and the processor's flags and measures nothing, so a resumed run takes the same kernels. It is
    no part of a stage's key: it moves the last bits alone, as another processor does.
    """
    tiles = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16")
    if not tiles or precision != "bf16-mixed":
        return torch.channels_last
    convolutions = [each for each in net.modules() if isinstance(each, nn.Conv2d)]
    odd = sum(each.weight.numel() for each in convolutions if each.out_channels % ROW)
    whole = sum(each.weight.numel() for each in convolutions)
    return torch.contiguous_format if odd > whole / 2 else torch.channels_last


def laid(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Images in this layout, from channels-last ones.

    They are copied for another: of one channel they count as contiguous already, while kernels go by their strides.
    """
    return x if layout == torch.channels_last else x.clone(memory_format=layout)
