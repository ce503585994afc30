"""From a config node to a net that is known to take this data set's images."""

import copy
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd.config.construct import REFUSALS, construct, first_line, resolve_target
from kd.errors import UserError
from kd.nets.pretrained import Normalization, Pretrained
from kd.shape import Shape


def build_net(
    node: Mapping[str, Any],
    shape: Shape,
    where: str,
    *,
    load: bool = True,
    most: int | None = None,
    trained: bool = False,
) -> nn.Module:
    """Build a net, and try it on two blank images. Where it answers with more than logits, those alone are left.

    A net that was trained before wants its images under the mean and standard deviation of that training. It says so
    in an attribute `normalization`, which is set here for the pretrained nets of the libraries, and which a net of
    anybody's may set itself: (mean, std), a tuple of a number per channel each, for pixels in [0, 1].

    Args:
        node: `_target_` and keywords.
        where: the node's key in the config, for messages.
        load: False for a net whose weights come from elsewhere: where it is a pretrained one, only its normalisation
            is taken over.
        most: numbers that the net may have, where somebody else's file chooses it; None for any.
        trained: whether it will be trained, so that it is tried in train mode too.

    Returns:
        the net in train mode, its batch-norm statistics untouched by the trial.

    Raises:
        UserError: where it cannot be built, cannot take such images, or does not give logits [B, number of classes].
    """
    channels, size, classes = shape
    pretrained = pretrained_of(node, where)
    try:
        normalization = pretrained.normalization(channels) if pretrained else None
    except ValueError as error:
        raise UserError(f"{where}.{error}") from error
    named = node if load else without_pretrained(node)
    if most is not None:
        _refuse_larger(named, shape, where, most)
    try:
        net = construct(named, where, num_classes=classes, in_channels=channels, image_size=size)
    except (
        UserError
    ) as error:  # of the net's own, such as weights that are not there: it does not know its key
        raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from error
    if not isinstance(net, nn.Module):
        raise UserError(
            f"{where}: {node['_target_']} gave a {type(net).__name__}, not a torch.nn.Module"
        )
    if empty := [name for name, tensor in net.state_dict().items() if tensor.numel() == 0]:
        raise UserError(
            f"{where}: {node['_target_']} would have layers of no width ({empty[0]}); accepted are from 1"
        )
    set_normalization(net, normalization, channels, where)
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(2, channels, size, size))
    except REFUSALS as error:
        first = first_line(error)
        raise UserError(
            f"{where}: {node['_target_']} cannot take {channels}x{size}x{size} images: {first}"
        ) from error
    answers = [logits, *([_in_training(net, shape, where)] if trained else [])]
    for answer in answers:
        main = main_logits(answer)
        if main is None or tuple(main.shape) != (2, classes):
            found = tuple(main.shape) if main is not None else type(answer).__name__
            raise UserError(
                f"{where}: {node['_target_']} gives {found} for two images, needed are logits (2, {classes})"
            )
    if not all(isinstance(answer, Tensor) for answer in answers):
        net.register_forward_hook(_logits_alone)
    return net.train()


def main_logits(answer: Any) -> Tensor | None:
    """The logits in what a net answers: the answer itself, its `logits`, or the first of several; None without any.

    In training some nets give more, such as the GoogLeNet of torchvision with its auxiliary layers.
    """
    if isinstance(answer, Mapping):
        answer = answer.get("logits")
    found = getattr(answer, "logits", answer)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    return found if isinstance(found, Tensor) else None


def _logits_alone(net: nn.Module, images: Any, answer: Any) -> Any:
    """A forward hook that leaves a net's main logits alone."""
    return answer if isinstance(answer, Tensor) else main_logits(answer)


def _in_training(net: nn.Module, shape: Shape, where: str) -> Any:
    """What a net answers to two blank images in train mode; nothing of the net is left with them."""
    dummy = copy.deepcopy(net).train()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return dummy(torch.zeros(2, shape.channels, shape.image_size, shape.image_size))
    except REFUSALS as error:
        raise UserError(
            f"{where}: cannot take such images in train mode: {first_line(error)}"
        ) from error


def _refuse_larger(node: Mapping[str, Any], shape: Shape, where: str, most: int) -> None:
    """Refuse a net of more numbers, without taking the memory for them."""
    given = {
        "num_classes": shape.num_classes,
        "in_channels": shape.channels,
        "image_size": shape.image_size,
    }
    try:
        with torch.device("meta"):
            count = sum(
                tensor.numel() for tensor in construct(node, where, **given).state_dict().values()
            )
    except (
        Exception
    ):  # not all nets can be built without numbers; what is wrong shows when it is built with them
        return
    if count > most:
        raise UserError(
            f"{where}: {node['_target_']} would have {count:,} numbers, the file has room for {most:,}"
        )


def pretrained_of(node: Mapping[str, Any], where: str) -> Pretrained | None:
    """The weights that come with the net that a node names, where it asks for them.

    Whether a net has any is for its own file to say, by a function `pretrained_weights` that takes the node's keywords.

    Raises:
        UserError: for a net or for weights that there are not.
    """
    target, keywords = resolve_target(node, where)
    known = getattr(
        sys.modules.get(str(getattr(target, "__module__", ""))), "pretrained_weights", None
    )
    if not keywords.get("pretrained") or known is None:
        return None
    try:
        found: Pretrained | None = known(**keywords)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
    return found


def without_pretrained(node: Mapping[str, Any]) -> dict[str, Any]:
    """The node of the same net with fresh weights, and of a net that it holds."""
    return {
        name: without_pretrained(value) if isinstance(value, Mapping) else value
        for name, value in node.items()
        if name != "pretrained"
    }


def set_normalization(
    net: nn.Module, normalization: Normalization | None, channels: int, where: str
) -> None:
    """Note the mean and standard deviation per channel that a net wants; None leaves what it says itself.

    Raises:
        UserError: there are not as many as channels, or a deviation is not above 0.
    """
    if normalization is not None:
        net.normalization = normalization  # type: ignore[assignment]
    own = getattr(net, "normalization", None)
    if isinstance(own, tuple):
        mean, std = own
        if not len(mean) == len(std) == channels or min(std) <= 0:
            raise UserError(
                f"{where}: its normalisation is {own}; the images have {channels} channel(s)"
            )


def normalization_of(net: nn.Module, statistics: Normalization) -> Normalization:
    """The mean and standard deviation per channel that a net is fed with, for pixels in [0, 1].

    Whatever gives a net pixels asks this: its own, where it was trained before, or else those of the data.

    Args:
        statistics: the data set's.
    """
    own = getattr(net, "normalization", None)
    return own if isinstance(own, tuple) else statistics
