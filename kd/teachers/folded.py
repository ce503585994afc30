"""A teacher whose batch norms are folded into the convolutions before them: less to compute, the same answers."""

import operator
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.optimization import fuse

from kd.teachers.frozen import Frozen


class Folded:
    """A frozen net, loaded and folded when it is first asked; not for whoever looks at what its modules return.

    It changes the logits by about a millionth of their size.

    Args:
        load: gives the net, to be taken over; it answers as it is where it cannot be folded.
    """

    def __init__(self, load: Callable[[], Frozen]) -> None:
        self.load, self.device, self.asked = load, torch.device("cpu"), False

    @cached_property
    def frozen(self) -> Frozen:
        """The net. A job of a sweep finds all answers in the cache, and does without."""
        with torch.random.fork_rng(devices=[]):  # what the student draws must not depend on when this is
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
            try:
                same = torch.allclose(self.frozen(x), before, rtol=1e-3, atol=1e-3)
            except RuntimeError:  # a sum in place that is larger than its first part
                same = False
            if not same:
                self.frozen.net = net


def folded(net: nn.Module) -> nn.Module:
    """A copy of a net in evaluation mode with its batch norms folded in; itself where its code cannot be followed."""
    try:
        quick = fuse(net)
    except Exception:  # of whatever kind a net's own code meets when it is shown a placeholder for images
        return net
    assert isinstance(quick, GraphModule)
    _in_place(quick)
    return quick.to(memory_format=torch.channels_last)


def _in_place(net: GraphModule) -> None:
    """Let sums and activations write into what nobody else reads: the same answers from less memory."""
    modules = dict(net.named_modules())
    for node in net.graph.nodes:
        first = node.args[0] if node.args else None
        if not isinstance(first, Node) or len(first.users) > 1 or not _is_fresh(first, modules):
            continue
        if node.target is operator.add and isinstance(node.args[1], Node):
            node.target = operator.iadd
        elif node.op == "call_module" and type(modules[node.target]) is nn.ReLU:
            # Not the module itself, which may be called in other places too, where its input is still wanted.
            node.op, node.target = "call_function", torch.relu_
    net.recompile()


def _is_fresh(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether what a node gives is its own, and no view of something else."""
    if node.op == "call_module":
        return type(modules[str(node.target)]) in {nn.Conv2d, nn.BatchNorm2d}
    return node.target in (operator.add, operator.iadd)
