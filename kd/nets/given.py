"""Nets built in Python and passed to `kd.distill`, instead of named in a config."""

import copy
import hashlib
import inspect
import uuid

from torch import nn

from kd.errors import UserError
from kd.log import say

_NETS: dict[str, nn.Module] = {}


def given_net(name: str, num_classes: int) -> nn.Module:
    """Return a copy of the net registered under this name; `num_classes` is the size of its head.

    Raises:
        UserError: this process has no such net.
    """
    if name not in _NETS:
        raise UserError(
            f"net {name}: was an object in Python, which this process does not have; build it "
            "there and load its weights from student.safetensors"
        )
    return copy.deepcopy(_NETS[name])


def register(net: nn.Module, role: str) -> dict[str, str]:
    """Keep a copy of a net and return the config node that builds it.

    The name is a hash of source, printed structure and weights, so that the store recognises the
    net. A net without readable source, such as one typed into a shell, gets a new name each time.
    """
    digest = hashlib.sha256(repr(net).encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    try:
        for kind in sorted(
            {type(module) for module in net.modules()}, key=lambda each: each.__qualname__
        ):
            digest.update(inspect.getsource(kind).encode())
    except (OSError, TypeError):
        say(
            f"{role}: the source of {kind.__qualname__} cannot be read, so no finished stage "
            "with it is reused"
        )
        digest.update(uuid.uuid4().bytes)
    name = f"{type(net).__name__}-{digest.hexdigest()[:16]}"
    _NETS[name] = copy.deepcopy(net)
    return {"_target_": f"{__name__}.{given_net.__name__}", "name": name}
