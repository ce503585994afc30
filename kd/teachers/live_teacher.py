"""Live teacher, and the protocols for all teachers."""

from collections.abc import Iterator
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from kd.config.precision import Precision
from kd.nets.hooks import NetOutput
from kd.nets.layer_paths import FeaturePaths
from kd.teachers.top_answers import spread_rest

# On a CPU a net always gets this many images at once, padded with blank ones. The last bit of its
# logits depends on the batch size (not on the other images), and must not depend on the caller.
CHUNK = 64
# Fewer large images, so that activations do not grow with image size
PIXELS = 2**20

Outputs = Literal["float16", "float32"]
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Outputs)}
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def chunk_of(height: int, width: int) -> int:
    """Return the number of images of this size (pixels) per batch on a CPU."""
    return max(1, min(CHUNK, PIXELS // (height * width)))


def computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Return a context that computes in this precision, regardless of outer contexts."""
    dtype = HALF.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class TeacherNet(Protocol):
    """Source of outputs, one net or several; x [B, C, H, W] in [0, 1] -> logits [B,
    num_classes].
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits [B, num_classes] without gradient, independent of the rest of the batch."""

    def to(self, device: torch.device) -> object:
        """Move to a device."""


class Teacher(Protocol):
    """Teacher in training.

    Attributes:
        paths: where its features come from; None where it gives none.
    """

    paths: FeaturePaths | None

    def __call__(self, x: Tensor, index: Tensor, view: int) -> NetOutput:
        """Return float32 logits [B, num_classes], and features where asked, without gradient.

        Args:
            x: views of images, float32 [B, C, H, W] in [0, 1].
            index: the images' numbers in the training part, int64 [B].
            view: number of the view, from 0.
        """

    def prepare(self, view: int) -> None:
        """Prepare for a view; called before its first batch."""

    def to(self, device: torch.device) -> object:
        """Move to a device."""


class LiveTeacher:
    """Asks the net about every batch.

    Args:
        answers: the net.
        outputs: type that logits are rounded to. Half precision keeps 11 significant bits and
            halves the cache. Values beyond +-65504 are clamped.
        precision: precision of the net, independent of the student's.
        top_k: how many logits are kept; the others get one value. None keeps all. See
            `kd.teachers.top_answers`.
    """

    def __init__(
        self,
        answers: TeacherNet,
        outputs: Outputs = "float16",
        precision: Precision = "32-true",
        top_k: int | None = None,
    ) -> None:
        self.answers = answers
        self.dtype = DTYPES[outputs]
        self.precision = precision
        self.top_k = top_k
        self.device = torch.device("cpu")
        self.paths: FeaturePaths | None = None

    def __deepcopy__(self, memo: object) -> "LiveTeacher":
        # Weight averaging copies the model; the teacher never changes, so one is enough
        return self

    def to(self, device: torch.device) -> "LiveTeacher":
        """Move the net; returns itself."""
        self.answers.to(device)
        self.device = device
        return self

    def prepare(self, view: int) -> None:
        """Do nothing; a live teacher needs no preparation."""

    def __call__(self, x: Tensor, index: Tensor, view: int) -> NetOutput:
        """Compute float32 logits [B, num_classes] for x [B, C, H, W].

        They are equal for equal pixels in any batch; on an accelerator up to the last bits.
        """
        return NetOutput(self.ask(x).float())

    def complete(self, stored: NetOutput) -> NetOutput:
        """Return a stored answer with what is not stored: nothing."""
        return stored

    @torch.no_grad()
    def ask(self, x: Tensor) -> Tensor:
        """Compute x [B, C, H, W] in [0, 1] -> logits [B, num_classes] of the type `outputs`."""
        with computing_in(self.precision, x.device):
            return self._ask(x)

    def _ask(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self._round(self.answers(x))
        # Autocast to bf16 cannot mix with float16
        found = [self.answers(chunk)[:count].float() for chunk, count in in_chunks(x)]
        return self._round(torch.cat(found))

    def _round(self, logits: Tensor) -> Tensor:
        found = round_to(logits, self.dtype)
        return found if self.top_k is None else round_to(spread_rest(found, self.top_k), self.dtype)


def in_chunks(x: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Iterate over images [B, C, H, W] in batches of one size, blank at the end, with the number of
    images in each. The next batch overwrites the last.
    """
    # Strides choose the kernel, so each chunk is copied into memory of the same layout.
    size = chunk_of(*x.shape[2:])
    chunk = torch.empty((size, *x.shape[1:]), dtype=x.dtype, memory_format=torch.channels_last)
    for part in torch.split(x, size):
        chunk[: len(part)] = part
        chunk[len(part) :] = 0
        yield chunk, len(part)


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round numbers [...] to a type; values beyond its range are clamped."""
    limit = torch.finfo(dtype).max
    return x.float().clamp(-limit, limit).to(dtype)
