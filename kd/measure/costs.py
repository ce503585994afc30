"""What a net costs: parameters, multiply-accumulates, bytes, time."""

import copy
import statistics
import timeit
import weakref
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd.files.report_file import Latency
from kd.shape import Shape


class Size(NamedTuple):
    """Parameters of a net (count), and its bytes as safetensors."""

    params: int
    bytes: int


def size_of(net: nn.Module) -> Size:
    """How large a net is; one that is not torch's counts its parameters itself."""
    return Size(
        getattr(net, "parameter_count", 0) or sum(p.numel() for p in net.parameters()),
        len(save({k: v.contiguous() for k, v in net.state_dict().items()})),
    )


def count_macs(net: nn.Module, shape: Shape) -> int:
    """Count multiply-accumulates of convolutions, matrix products and attention per image."""
    # Imports torch's compiler, 2 s at start
    from torch.utils.flop_counter import FlopCounterMode

    # The meta device computes nothing, and keeps attention off its fast path, which is not counted.
    net = copy.deepcopy(net).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, *shape.pixels, device="meta"))
    return int(counter.get_total_flops()) // 2


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that tracks the memory of live tensors."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._counted: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet(
            each.untyped_storage() for each in known
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for storage in (
            each.untyped_storage() for each in tree_leaves(found) if isinstance(each, Tensor)
        ):
            if storage not in self._counted:  # views and in-place operations allocate nothing
                self._counted.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.now)
        return found

    def _free(self, size: int) -> None:
        self.now -= size


def peak_activations(net: nn.Module, shape: Shape, batch: int = 1) -> int:
    """Return the peak bytes of live tensors in a forward pass, except weights and input.

    Measured operation by operation, as PyTorch runs on the CPU. Scratch memory inside an operation
    is not counted, nor what a compiler would save by fusing operations.
    """
    net = net.cpu().eval()
    x = torch.zeros(batch, *shape.pixels)
    with torch.no_grad(), _LiveTensors(x, *net.parameters(), *net.buffers()) as counter:
        net(x)
    return int(counter.peak)


def latency(
    net: nn.Module, shape: Shape, *, batch: int = 1, seconds: float = 0.25, least: int = 20
) -> Latency:
    """Time a warm forward pass on the CPU with torch's current number of threads.

    Args:
        seconds: target measuring time.
        least: passes that are timed at least.
    """
    net = net.cpu().eval()
    x = torch.randn(batch, *shape.pixels)
    with torch.inference_mode():
        timer = timeit.Timer(lambda: net(x))
        warm = min(3, least)
        timer.timeit(warm)
        passes = min(1000, max(least, int(seconds / max(timer.timeit(warm) / warm, 1e-6))))
        times = sorted(1000 * t for t in timer.repeat(passes, number=1))
    return Latency(
        batch=batch, median=statistics.median(times), p95=times[int(0.95 * (len(times) - 1))]
    )
