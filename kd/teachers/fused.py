"""Teacher with batch norms fused into the preceding convolutions."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from kd.teachers.frozen import Frozen

TRIED = 8  # images on which the fused net must agree with the net as it is


class Folded:
    """Frozen net, loaded and fused at first use; not for features.

    Fusing changes the logits by a relative 1e-5 or so.

    Args:
        load: returns the net, to be taken over; it stays unfused if its code cannot be traced.
        compiled: whether to compile it with torch.compile.
    """

    def __init__(self, load: Callable[[], Frozen], compiled: bool = False) -> None:
        self.load, self.device, self.asked = load, torch.device("cpu"), False
        self.compiled = compiled

    @cached_property
    def frozen(self) -> Frozen:
        """The net. A sweep job that finds all outputs in the cache never loads it."""
        # The student's random draws must not depend on when this happens
        with torch.random.fork_rng(devices=[]):
            return self.load().to(self.device)

    def __deepcopy__(self, memo: object) -> "Folded":
        return self  # as in `Frozen`

    def to(self, device: torch.device) -> "Folded":
        """Move the net; returns itself."""
        self.device = device
        if "frozen" in self.__dict__:
            self.frozen.to(device)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Compute x [B, C, H, W] in [0, 1] -> logits [B, num_classes], without gradient."""
        if not self.asked:
            self._fold(x)
        return self.frozen(x)

    def _fold(self, x: Tensor) -> None:
        self.asked, net, x = True, self.frozen.net, x[:TRIED]
        with torch.autocast(x.device.type, enabled=False):
            before = self.frozen(x)
            self.frozen.net = folded(net)
            if not torch.allclose(self.frozen(x), before, rtol=1e-3, atol=1e-3):
                self.frozen.net = net
        if self.compiled:
            self.frozen.net.compile()


def folded(net: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode with batch norms fused, or the net itself if it cannot be
    traced.
    """
    try:
        quick: nn.Module = fuse(net)
    # A net's own code may raise anything on a placeholder
    except Exception:
        return net
    return quick.to(memory_format=torch.channels_last)
