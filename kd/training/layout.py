"""Memory layout of images and maps in training."""

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn

from kd.nets.inputs import inputs_of
from kd.shape import Shape

FEW = 8  # channels: float32 numbers in a register of AVX2
ROW = 16  # bfloat16 numbers in half a tile row of AMX; other widths are padded in every layer


def layout_of(
    net: nn.Module, precision: str, device: torch.device, shape: Shape
) -> torch.memory_format:
    """Choose channels-last, which is faster for nearly all nets and precisions, or contiguous.

    Contiguous is for a CPU, for three kinds of nets. One has a 1x1 convolution with a stride over
    fewer than 8 channels: without AVX-512 the way back of PyTorch 2.15 writes past its memory when
    channels-last, which ends the process. The others are for bf16. One has a depthwise convolution
    with a stride on maps of one pixel, as MobileNets have on small images: PyTorch 2.15 leaves most
    of its weight's gradient unset when channels-last. The other is a net with most convolution
    weights in layers whose width is no multiple of 16, on a CPU with AMX. There a ResNet-14 of
    widths 13, 13, 26, 52 took 0.69 ms per image contiguous and 1.42 channels-last (two cores,
    batches of 128). Without AMX channels-last is faster for that net too.

    The choice depends on the net and the processor's flags, not on a measurement, so a resumed run
    uses the same kernels. It is not in a stage's key: it changes only last bits, as another
    processor does.
    """
    if device.type != "cpu":
        return torch.channels_last
    flags = torch.cpu.get_capabilities()
    if not flags.get("avx512_f") and _strides_over_few_channels(net):
        return torch.contiguous_format
    if precision != "bf16-mixed":
        return torch.channels_last
    if _strides_over_a_pixel(net, shape):
        return torch.contiguous_format
    if not flags.get("amx_bf16"):
        return torch.channels_last
    convolutions = [each for each in net.modules() if isinstance(each, nn.Conv2d)]
    odd = sum(each.weight.numel() for each in convolutions if each.out_channels % ROW)
    whole = sum(each.weight.numel() for each in convolutions)
    return torch.contiguous_format if odd > whole / 2 else torch.channels_last


def _strides_over_few_channels(net: nn.Module) -> bool:
    """Whether a 1x1 convolution has a stride, and fewer than 8 channels to read."""
    return any(
        max(each.stride) > 1 and max(each.kernel_size) == 1 and each.in_channels < FEW
        for each in net.modules()
        if isinstance(each, nn.Conv2d)
    )


def _strides_over_a_pixel(net: nn.Module, shape: Shape) -> bool:
    """Whether a depthwise convolution with a stride gets maps of one pixel."""
    strided = [
        each
        for each in net.modules()
        if isinstance(each, nn.Conv2d) and each.groups > 1 and max(each.stride) > 1
    ]
    if not strided:
        return False
    return any(inputs[0].shape[-2:] == (1, 1) for _, inputs in inputs_of(strided, net, shape))


def choose_layout(module: L.LightningModule, trainer: L.Trainer) -> torch.memory_format:
    """Return the layout of `module.net`, and convert the module where its strategy keeps it whole.

    To be called before the strategy wraps the module. DDP notes the strides of its parameters then:
    with others its gradients of the first step are wrong. FSDP and DeepSpeed flatten parameters.
    """
    strategy = trainer.strategy
    found = layout_of(
        module.net,  # type: ignore[arg-type]
        trainer.precision,
        strategy.root_device,
        module.objective.shape,  # type: ignore[arg-type]
    )
    if not isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        module.to(memory_format=found)
    return found


def to_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Convert channels-last images x [B, C, H, W] to this layout.

    Contiguous ones are copied: with one channel torch takes both layouts for the same, while
    kernels are chosen by strides.
    """
    return x if layout == torch.channels_last else x.clone(memory_format=layout)
