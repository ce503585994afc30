"""Memory layout of images and maps in training."""

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn

ROW = 16  # bfloat16 numbers in half a tile row of AMX; other widths are padded in every layer


def layout_of(net: nn.Module, precision: str, device: torch.device) -> torch.memory_format:
    """Choose channels-last, which is faster for nearly all nets and precisions, or contiguous.

    Contiguous is for bf16 on a CPU with AMX, and a net with most convolution weights in layers
    whose width is no multiple of 16. There a ResNet-14 of widths 13, 13, 26, 52 took 0.69 ms per
    image contiguous and 1.42 channels-last (two cores, batches of 128). Without AMX channels-last
    is faster for that net too.

    The choice depends on the net and the processor's flags, not on a measurement, so a resumed run
    uses the same kernels. It is not in a stage's key: it changes only last bits, as another
    processor does.
    """
    tiles = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16")
    if not tiles or precision != "bf16-mixed":
        return torch.channels_last
    convolutions = [each for each in net.modules() if isinstance(each, nn.Conv2d)]
    odd = sum(each.weight.numel() for each in convolutions if each.out_channels % ROW)
    whole = sum(each.weight.numel() for each in convolutions)
    return torch.contiguous_format if odd > whole / 2 else torch.channels_last


def choose_layout(module: L.LightningModule, trainer: L.Trainer) -> torch.memory_format:
    """Return the layout of `module.net`, and convert the module where its strategy keeps it whole.

    To be called before the strategy wraps the module. DDP notes the strides of its parameters then:
    with others its gradients of the first step are wrong. FSDP and DeepSpeed flatten parameters.
    """
    strategy = trainer.strategy
    found = layout_of(module.net, trainer.precision, strategy.root_device)  # type: ignore[arg-type]
    if not isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        module.to(memory_format=found)
    return found


def to_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Convert channels-last images x [B, C, H, W] to this layout.

    Contiguous ones are copied: with one channel torch takes both layouts for the same, while
    kernels are chosen by strides.
    """
    return x if layout == torch.channels_last else x.clone(memory_format=layout)
