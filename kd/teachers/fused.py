"""A teacher whose batch norms are folded into the convolutions before them."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from kd.teachers.frozen import Frozen


class Folded:
    """A frozen net, loaded and folded when it is first asked; not for whoever looks at what its modules return.

    It changes the logits by about a hundred thousandth of their size.

    Args:
        load: gives the net, to be taken over; it answers as it is where it cannot be folded.
        compiled: whether torch's compiler makes kernels of it.
    """

    def __init__(self, load: Callable[[], Frozen], compiled: bool = False) -> None:
        self.load, self.device, self.asked = load, torch.device("cpu"), False
        self.compiled = compiled

    @cached_property
    def frozen(self) -> Frozen:
        """The net. A job of a sweep finds all answers in the cache, and does without."""
        with torch.random.fork_rng(
            devices=[]
        ):  # what the student draws must not depend on when this is
            return self.load().to(self.device)

    def __deepcopy__(self, memo: object) -> "Folded":
        return self  # as `Frozen`

    def to(self, device: torch.device) -> "Folded":
        """Move the net; returns itself."""
        self.device = device
        if "frozen" in self.__dict__:
            self.frozen.to(device)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] in [0, 1] -> logits [B, num_classes], without gradient."""
        if not self.asked:
            self._fold(x)
        return self.frozen(x)

    def _fold(self, x: Tensor) -> None:
        self.asked, net = True, self.frozen.net
        with torch.autocast(x.device.type, enabled=False):
            before = self.frozen(x)
            self.frozen.net = folded(net)
            if not torch.allclose(self.frozen(x), before, rtol=1e-3, atol=1e-3):
                self.frozen.net = net
        if self.compiled:
            self.frozen.net.compile()


def folded(net: nn.Module) -> nn.Module:
    """A copy of a net in evaluation mode, batch norms folded in; the net itself where its code cannot be followed."""
    try:
        quick: nn.Module = fuse(net)
    except (
        Exception
    ):  # of whatever kind a net's own code meets when it is shown a placeholder for images
        return net
    return quick.to(memory_format=torch.channels_last)
