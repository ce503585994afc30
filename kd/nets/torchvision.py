"""Nets of torchvision by name."""

import difflib
import re
from typing import Any

import torchvision.models
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from kd.nets.pretrained_weights import PretrainedWeights, first_convolution, for_gray, hub_state

INCEPTIONS = ("googlenet", "inception_v3")


def torchvision_net(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool | str = False,
    **options: Any,
) -> nn.Module:
    """Build a torchvision classification net, with fresh or pretrained weights.

    Input [B, in_channels, H, W], output logits [B, num_classes]. For other than 3 channels the
    first convolution is replaced. Pretrained weights fill all layers except the last, which starts
    fresh unless it has the same number of classes. For gray images the first convolution is summed
    over colours.

    Args:
        name: as in `torchvision.models.list_models(module=torchvision.models)`, e.g.
            `mobilenet_v3_small`.
        pretrained: true for torchvision's default weights, or the name of others, e.g.
            `IMAGENET1K_V1`. They want their own normalisation: see `pretrained_weights`.
        options: passed to torchvision's builder, e.g. `dropout=0.1`.

    Raises:
        ValueError: unknown name; suggests the nearest.
        UserError: the weights are not cached and cannot be downloaded.
    """
    weights = chosen_weights(name, pretrained)
    if name in INCEPTIONS:
        # Auxiliary heads return a tuple in training. `transform_input` stays off: it would
        # renormalise ImageNet-normalised images, but ours already have the net's own normalisation.
        options = {"aux_logits": False, "init_weights": not weights, **options}
    net: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **options
    )
    if in_channels != 3:
        _replace_first_convolution(net, in_channels)
    if weights:
        load_imagenet(net, weights, f"{name}, pretrained", in_channels)
    return net


def pretrained_weights(
    name: str, pretrained: bool | str = False, **_: Any
) -> PretrainedWeights | None:
    """Return the weights and normalisation of `torchvision_net` for these keywords; None for none.

    Raises:
        ValueError: unknown name.
    """
    weights = chosen_weights(name, pretrained)
    if weights is None:
        return None
    return named_weights(name, weights)


def named_weights(name: str, weights: WeightsEnum) -> PretrainedWeights:
    """Return weights with their full name and normalisation.

    Args:
        name: of the net.
    """
    preset = weights.transforms()
    mean = (0.5,) * 3
    std = (0.5,) * 3
    # These two declare ImageNet's and convert it to this themselves, see `transform_input`
    if name not in INCEPTIONS:
        mean = tuple(preset.mean)
        std = tuple(preset.std)
    return PretrainedWeights(
        f"torchvision {weights!r} {weights.url.rpartition('/')[2]}",
        mean,
        std,
        preset.crop_size[0],
        preset.resize_size[0],
        preset.interpolation.value,
    )


def chosen_weights(name: str, pretrained: bool | str) -> WeightsEnum | None:
    """Find the weights that `pretrained` asks for; None for none.

    Raises:
        ValueError: unknown net or weights.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(
            f"name: torchvision has no net {name!r}; nearest: {', '.join(close) or 'none'}"
        )
    if not pretrained:
        return None
    choice = torchvision.models.get_model_weights(name)
    if pretrained is True:
        return choice.DEFAULT
    if pretrained not in choice.__members__:
        raise ValueError(
            f"pretrained: found {pretrained!r}, accepted are true, false, "
            f"{', '.join(choice.__members__)}"
        )
    return choice[pretrained]


def load_imagenet(net: nn.Module, weights: WeightsEnum, where: str, in_channels: int) -> None:
    """Load weights into a net with torchvision's names; a last layer for other classes stays.

    Args:
        where: who asks for it, for messages.

    Raises:
        ValueError: they do not fit.
        UserError: they are not cached and cannot be downloaded.
    """
    state = hub_state(weights.url, where)
    # DenseNet weights of 2017
    for name in [name for name in state if re.search(r"\.(norm|relu|conv)\.\d\.", name)]:
        state[re.sub(r"\.(norm|relu|conv)\.(\d)\.", r".\1\2.", name)] = state.pop(name)
    own = net.state_dict()
    first = f"{first_convolution(net)}.weight"
    if in_channels == 1:
        state[first] = for_gray(state[first])
    classes = len(weights.meta["categories"])
    head = {name for name in state if name in own and _is_head(state[name], own[name], classes)}
    for name in [name for name in state if name in head or name.startswith(("aux", "AuxLogits"))]:
        del state[name]  # in place: the dictionary holds versions that old layers need
    try:
        left, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"{where}: {weights!r} does not fit the net: {str(error).splitlines()[-1].strip()}"
        ) from error
    absent = [
        name for name in left if name not in head and not name.endswith("num_batches_tracked")
    ]
    if absent or unexpected:
        raise ValueError(
            f"{where}: {weights!r} does not fit: missing {absent[:10]}, unexpected "
            f"{unexpected[:10]}"
        )


def _is_head(theirs: Tensor, ours: Tensor, classes: int) -> bool:
    """Whether a tensor belongs to the last layer, at another number of classes."""
    return theirs.ndim > 0 and theirs.shape != ours.shape and len(theirs) == classes


def _replace_first_convolution(net: nn.Module, in_channels: int) -> None:
    path = first_convolution(net)
    old = net.get_submodule(path)
    assert isinstance(old, nn.Conv2d)
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, new)
