"""Builds a net from a config node and checks that it takes this data set's images."""

import copy
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kd.config.construct import REFUSALS, construct, first_line, resolve_target
from kd.errors import UserError
from kd.nets.pretrained_weights import Normalization, PretrainedWeights
from kd.shape import Shape

SMALL = 32  # pixels: of a side below which a net that takes no such images is told of larger ones


def build_net(
    node: Mapping[str, object],
    shape: Shape,
    where: str,
    *,
    load: bool = True,
    most: int | None = None,
    trained: bool = False,
) -> nn.Module:
    """Build a net and try it on two blank images. Outputs other than the logits are dropped.

    A pretrained net wants its images under the mean and standard deviation of its training. They
    are in its attribute `normalization`: (mean, std), a tuple with one number per channel each, for
    pixels in [0, 1]. It is set here for the pretrained nets of the libraries; any other net may set
    it itself.

    Args:
        node: `_target_` and keywords.
        where: config key of the node, for messages.
        load: False if the weights come from elsewhere; of a pretrained net only the normalisation
            is then used.
        most: limit on the number of parameters and buffers, where a file from elsewhere chooses the
            net; None for none.
        trained: whether it will be trained, and is therefore tried in train mode too.

    Returns:
        the net in train mode; the trial leaves its batch-norm statistics unchanged.

    Raises:
        UserError: it cannot be built, does not take such images, or gives no logits [B, number of
            classes].
    """
    channels, size, classes = shape
    pretrained = pretrained_weights_of(node, where)
    try:
        normalization = pretrained.normalization(channels) if pretrained else None
    except ValueError as error:
        raise UserError(f"{where}.{error}") from error
    named = node if load else fresh_node(node)
    if most is not None:
        _refuse_larger(named, shape, where, most)
    try:
        net = construct(named, where, num_classes=classes, in_channels=channels, image_size=size)
    except (
        UserError
        # Raised by the net itself, such as missing weights: it does not know its config key
    ) as error:
        raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from error
    if not isinstance(net, nn.Module):
        raise UserError(
            f"{where}: {node['_target_']} gave a {type(net).__name__}, not a torch.nn.Module"
        )
    if empty := [name for name, tensor in net.state_dict().items() if tensor.numel() == 0]:
        raise UserError(
            f"{where}: {node['_target_']} would have layers of no width ({empty[0]}); "
            "accepted are from 1"
        )
    set_normalization(net, normalization, channels, where)
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(2, *shape.pixels))
    except REFUSALS as error:
        first = first_line(error)
        sides = "x".join(map(str, shape.pixels))
        hint = ""
        if min(shape.pixels[1:]) < SMALL:
            hint = "; larger images may fit it, in folders by data.image_size"
        raise UserError(
            f"{where}: {node['_target_']} cannot take {sides} images: {first}{hint}"
        ) from error
    answers = [logits, *([_in_training(net, shape, where)] if trained else [])]
    for answer in answers:
        main = main_logits(answer)
        if main is None or tuple(main.shape) != (2, classes):
            found = tuple(main.shape) if main is not None else type(answer).__name__
            raise UserError(
                f"{where}: {node['_target_']} gives {found} for two images, needed are logits "
                f"(2, {classes})"
            )
    if not all(isinstance(answer, Tensor) for answer in answers):
        net.register_forward_hook(_logits_alone)
    return net.train()


def main_logits(answer: object) -> Tensor | None:
    """Return the logits [B, C] in a net's output: itself, its `logits`, or its first element; or
    None.

    Some nets return more in training, such as torchvision's GoogLeNet with its auxiliary heads.
    """
    if isinstance(answer, Mapping):
        answer = answer.get("logits")
    found = getattr(answer, "logits", answer)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    return found if isinstance(found, Tensor) else None


def _logits_alone(net: nn.Module, images: object, answer: object) -> object:
    """Forward hook that reduces a net's output to its main logits."""
    return answer if isinstance(answer, Tensor) else main_logits(answer)


def _in_training(net: nn.Module, shape: Shape, where: str) -> object:
    """Return a net's output for two blank images in train mode, leaving the net unchanged."""
    dummy = copy.deepcopy(net).train()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return dummy(torch.zeros(2, *shape.pixels))
    except REFUSALS as error:
        raise UserError(
            f"{where}: cannot take such images in train mode: {first_line(error)}"
        ) from error


def _refuse_larger(node: Mapping[str, object], shape: Shape, where: str, most: int) -> None:
    """Refuse a net with more parameters and buffers, without allocating them."""
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
    # Not every net can be built on the meta device; its errors appear in the real build
    except Exception:
        return
    if count > most:
        raise UserError(
            f"{where}: {node['_target_']} would have {count:,} numbers, the file has room for "
            f"{most:,}{'' if most else ', as it is empty'}"
        )


def pretrained_weights_of(node: Mapping[str, object], where: str) -> PretrainedWeights | None:
    """Return the pretrained weights that a node asks for; None if it asks for none.

    The net's own file decides, through a function `pretrained_weights` that takes the node's
    keywords.

    Raises:
        UserError: unknown net or weights.
    """
    target, keywords = resolve_target(node, where)
    known = getattr(
        sys.modules.get(str(getattr(target, "__module__", ""))), "pretrained_weights", None
    )
    if not keywords.get("pretrained") or known is None:
        return None
    try:
        found: PretrainedWeights | None = known(**keywords)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
    return found


def fresh_node(node: Mapping[str, object]) -> dict[str, object]:
    """Return the node with fresh weights, also for a net inside it."""
    return {
        name: fresh_node(value) if isinstance(value, Mapping) else value
        for name, value in node.items()
        if name != "pretrained"
    }


def set_normalization(
    net: nn.Module, normalization: Normalization | None, channels: int, where: str
) -> None:
    """Set the normalisation that a net wants, per channel; None keeps the net's own.

    Raises:
        UserError: the number of values differs from the channels, or a deviation is not positive.
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
    """Return the normalisation to apply before a net, for pixels in [0, 1]: its own or the data's.

    All code that feeds pixels to a net uses this.

    Args:
        statistics: mean and standard deviation per channel of the data set.
    """
    own = getattr(net, "normalization", None)
    return own if isinstance(own, tuple) else statistics
