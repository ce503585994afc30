"""ResNet-18, ResNet-34 and ResNet-50 of any width, for small and large images."""

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from kd.nets.initial import kaiming
from kd.nets.pretrained_weights import PretrainedWeights
from kd.shape import ImageSize, height_and_width

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


WIDER = 4  # ratio of a bottleneck's output to its inner channels


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al. 2015, Fig. 5 left).

    [B, inputs, H, W] -> [B, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / stride, W / stride], after the last ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activated: Tensor = self.relu(out + shortcut)
        return activated


class BottleneckBlock(nn.Module):
    """3x3 convolution between two 1x1 ones, batch norm and shortcut (He et al. 2015, Fig. 5 right).

    The 3x3 convolution has the stride, as in torchvision. [B, inputs, H, W] -> [B, outputs, H /
    stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // WIDER
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H / stride, W / stride], after the last ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        activated: Tensor = self.relu(out + shortcut)
        return activated


class ResNet(nn.Module):
    """Residual net of basic blocks or, from depth 50, bottlenecks (He et al. 2015).

    Input [B, in_channels, H, W], output logits [B, num_classes]. At `width=64` and the `imagenet`
    stem, names and shapes of the parameters equal torchvision's `resnet18`, `resnet34` and
    `resnet50`, so their weights load. With 100 classes and the `small` stem ResNet-50 has
    23,705,252 parameters, as in Tian et al. 2020.

    Args:
        depth: 18, 34 or 50.
        width: channels of the first group; each later group has twice as many as the one before.
        pretrained: true starts from torchvision's ImageNet weights, or the name of others of its,
            e.g. `IMAGENET1K_V1`; needs `width=64` and the `imagenet` stem.
        stem: `small` is one 3x3 convolution at full resolution; `imagenet` is a 7x7 convolution of
            stride 2 and a max pooling; `auto` uses `small` below 64 pixels.

    Raises:
        ValueError: unknown depth or stem, or weights that do not fit.
        UserError: the weights are not cached and cannot be downloaded.
    """

    taps = ("layer1", "layer2", "layer3", "layer4")
    stem = "relu"
    other_names = (  # those of RepDistiller and kuangliu/pytorch-cifar
        (r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample."),
        (r"^linear\.", "fc."),
    )

    def __init__(
        self,
        num_classes: int,
        depth: int,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        width: int = 64,
        stem: Literal["auto", "small", "imagenet"] = "auto",
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth: found {depth}, accepted are {sorted(BLOCKS)}")
        if stem not in ("auto", "small", "imagenet"):
            raise ValueError(f"stem: found {stem!r}, accepted are auto, small, imagenet")
        small = stem == "small" or (stem == "auto" and min(height_and_width(image_size)) < 64)
        weights = _weights(depth, width, "small" if small else stem, pretrained)
        self.conv1: nn.Module
        self.maxpool: nn.Module
        if small:
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        block, wider = (BottleneckBlock, WIDER) if depth >= 50 else (BasicBlock, 1)
        inputs = width
        for group, blocks in enumerate(BLOCKS[depth], start=1):
            outputs = width * wider * 2 ** (group - 1)
            first = block(inputs, outputs, stride=1 if group == 1 else 2)
            rest = [block(outputs, outputs, stride=1) for _ in range(blocks - 1)]
            self.add_module(f"layer{group}", nn.Sequential(first, *rest))
            inputs = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        kaiming(self)
        if weights:
            from kd.nets.torchvision import load_imagenet

            load_imagenet(self, weights, f"resnet{depth}, pretrained", in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for group in range(1, 5):
            x = self.get_submodule(f"layer{group}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def pretrained_weights(
    depth: int,
    width: int = 64,
    stem: str = "auto",
    pretrained: bool | str = False,
    **_: Any,
) -> PretrainedWeights | None:
    """Return the weights that `ResNet` starts from with these keywords; None for none.

    Raises:
        ValueError: there are none for such a net.
    """
    weights = _weights(depth, width, stem, pretrained)
    if weights is None:
        return None
    from kd.nets.torchvision import named_weights

    return named_weights(f"resnet{depth}", weights)


def _weights(depth: int, width: int, stem: str, pretrained: bool | str) -> "WeightsEnum | None":
    if not pretrained:
        return None
    if width != 64 or stem == "small":
        raise ValueError(
            f"pretrained: found {pretrained!r} with width {width} and stem {stem!r}; ImageNet's "
            "weights are for width 64 and the stem imagenet"
        )
    # torchvision takes seconds to import
    from kd.nets.torchvision import chosen_weights

    return chosen_weights(f"resnet{depth}", pretrained)
