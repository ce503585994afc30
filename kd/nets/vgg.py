"""VGG nets for small images: VGG-13, VGG-8 and others."""

from torch import Tensor, nn

from kd.nets.initial import kaiming

# Convolutions in each of the five groups, which have 64, 128, 256, 512 and 512 channels.
GROUPS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five groups of 3x3 convolutions, batch norm, one linear layer (Simonyan & Zisserman 2014).

    Input [B, in_channels, H, W] with H, W >= 8, output logits [B, num_classes]. As in distillation
    papers since Tian et al. 2020: no hidden linear layers, max pooling after the first three
    groups, average pooling at the end. With 100 classes VGG-13 has 9,462,180 parameters and VGG-8,
    with one convolution per group, 3,965,028.

    Args:
        depth: 8, 11, 13, 16 or 19; it counts two hidden linear layers that this variant does not
            have.
        width: channels of the first group, for narrower nets.

    Raises:
        ValueError: unknown depth.
    """

    # As in Tian et al. 2020: the first group, at full resolution, is the stem.
    taps = ("block2", "block3", "block4", "block5")
    stem = "block1"
    other_names = (  # RepDistiller's
        *((rf"^block{group - 1}\.", f"block{group}.") for group in range(1, 6)),
        (r"^classifier\.", "fc."),
    )

    def __init__(self, num_classes: int, depth: int, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if depth not in GROUPS:
            raise ValueError(f"depth: found {depth}, accepted are {sorted(GROUPS)}")
        inputs = in_channels
        for group, (convolutions, channels) in enumerate(
            zip(GROUPS[depth], CHANNELS, strict=True), start=1
        ):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                outputs = channels * width // 64
                layers += [
                    nn.Conv2d(inputs, outputs, 3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
                inputs = outputs
            self.add_module(f"block{group}", nn.Sequential(*layers))
        self.pool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> logits [B, num_classes]."""
        for group in range(1, 6):
            x = self.get_submodule(f"block{group}")(x)
            if group <= 3:
                x = self.pool(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
