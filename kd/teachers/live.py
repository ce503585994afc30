"""A teacher that is asked each time, and what any teacher is to the training."""

from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from kd.config.precision import Precision

# On a CPU a net is always given so many pictures at once, blank ones where fewer are asked about: the last bit of its
# logits depends on the size of the batch (not on what else is in it), and must not depend on who asks.
CHUNK = 64
PIXELS = (
    2**20
)  # of large pictures fewer, so that what a net holds of them does not grow with their size

Outputs = Literal["float16", "float32"]
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Outputs)}
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def chunk_of(height: int, width: int) -> int:
    """How many pictures of this size a net is given at once on a CPU."""
    return max(1, min(CHUNK, PIXELS // (height * width)))


def computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which a net computes in this precision, whatever context is around it."""
    dtype = HALF.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class Answers(Protocol):
    """What knows the answers: a frozen net, or several; x [B, C, H, W] in [0, 1] -> logits [B, num_classes]."""

    def __call__(self, x: Tensor) -> Tensor:
        """The logits, without gradient; an image's do not depend on the other images in the batch."""

    def to(self, device: torch.device) -> Any:
        """Move to a device."""


class Teacher(Protocol):
    """What the training asks: image `index` in view `view`, whose pixels are x -> float32 logits [B, num_classes]."""

    def __call__(self, x: Tensor, index: Tensor, view: int) -> Tensor:
        """The logits for x [B, C, H, W] in [0, 1] and index int64 [B], without gradient."""

    def prepare(self, view: int) -> None:
        """Called before a view's first batch."""

    def to(self, device: torch.device) -> Any:
        """Move to a device."""


class Live:
    """Asks the net about every batch.

    Args:
        answers: the net.
        outputs: what logits are rounded to. Half precision rounds to 11 significant bits, and takes half the room in
            a cache; beyond its range of +-65504 it takes the nearest number in it.
        precision: what the net computes in, whatever the student's step does.
    """

    def __init__(
        self, answers: Answers, outputs: Outputs = "float16", precision: Precision = "32-true"
    ) -> None:
        self.answers, self.dtype, self.precision = answers, DTYPES[outputs], precision
        self.device = torch.device("cpu")

    def __deepcopy__(self, memo: object) -> "Live":
        return self  # averaging a model's weights copies the model; its teacher never changes, so one is enough

    def to(self, device: torch.device) -> "Live":
        """Move the net; returns itself."""
        self.answers.to(device)
        self.device = device
        return self

    def prepare(self, view: int) -> None:
        """Nothing is known beforehand."""

    def __call__(self, x: Tensor, index: Tensor, view: int) -> Tensor:
        """The same for the same pixels, whatever the batch; on an accelerator up to the last bits."""
        return self.ask(x).float()

    @torch.no_grad()
    def ask(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] in [0, 1] -> logits [B, num_classes] of the type `outputs`."""
        with computing_in(self.precision, x.device):
            return self._ask(x)

    def _ask(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self._rounded(self.answers(x))
        found = []
        # Strides are a part of it: they choose the kernel. So each chunk is copied into memory of the same layout.
        size = chunk_of(*x.shape[2:])
        chunk = torch.empty((size, *x.shape[1:]), dtype=x.dtype, memory_format=torch.channels_last)
        for part in torch.split(x, size):
            chunk[: len(part)] = part
            chunk[len(part) :] = 0
            found.append(
                self.answers(chunk)[: len(part)].float()
            )  # autocast to bf16 cannot join float16
        return self._rounded(torch.cat(found))

    def _rounded(self, logits: Tensor) -> Tensor:
        limit = torch.finfo(self.dtype).max
        return logits.float().clamp(-limit, limit).to(self.dtype)
