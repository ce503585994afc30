"""From a config node to a net that is known to take this data set's images."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd.construct import construct
from kd.errors import UserError


class Shape(NamedTuple):
    """What a net is built for: the images it takes and the classes it tells apart."""

    channels: int
    image_size: int
    num_classes: int


def build_net(node: Mapping[str, Any], shape: Shape, where: str) -> nn.Module:
    """Build a net, and try it on two blank images.

    Args:
        node: `_target_` and keywords.
        where: the node's key in the config, for messages.

    Returns:
        the net in train mode, its batch-norm statistics untouched by the trial.

    Raises:
        UserError: where it cannot be built, cannot take such images, or does not give logits [B, number of classes].
    """
    channels, size, classes = shape
    net = construct(node, where, num_classes=classes, in_channels=channels, image_size=size)
    if not isinstance(net, nn.Module):
        raise UserError(f"{where}: {node['_target_']} gave a {type(net).__name__}, not a torch.nn.Module")
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(2, channels, size, size))
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{where}: {node['_target_']} cannot take {channels}x{size}x{size} images: {first}") from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, classes):
        raise UserError(f"{where}: {node['_target_']} gives {found} for two images, needed are logits (2, {classes})")
    return net.train()
