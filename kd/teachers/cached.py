"""A teacher whose outputs are computed once for each view, by whoever needs it first, and read ever after."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from kd.data.images import Images
from kd.data.views import Augment, make_views
from kd.errors import CannotWrite
from kd.log import console, say
from kd.teachers.live import Live, chunk_of
from kd.teachers.view_files import ViewFiles

STEP = 8  # chunks of images made ready at a time
PATIENCE = 3.0  # seconds of computing after which it is shown


class Cached:
    """Reads a view's logits from its file; where there is none, asks about all training images and writes it first.

    Reading or asking, the logits are the same: on a CPU bit for bit, on an accelerator up to the last bits that its
    kernels change with the batch. Where a file can be neither read nor written (disk full, no permission, `limit`
    reached) it says so once and asks about each batch.

    While another process computes the view that is needed, one of the next ones is computed here; so jobs that begin
    together, and the ranks of DDP, share out the views.

    Args:
        live: what is asked.
        images: all training images, those without labels too; a batch's `index` counts in them.
        augment, seed: of the views, as the training makes them.
        files: where they are; for these images, views, and teacher alone.
        views: how many will be needed for sure.
        pool: the images that the second picture of a mixed view comes from; None for all training images.
    """

    def __init__(
        self,
        live: Live,
        images: Images,
        *,
        augment: Augment,
        seed: int,
        files: ViewFiles,
        views: int = 0,
        pool: Images | None = None,
    ) -> None:
        self.live, self.images, self.augment, self.seed, self.files = (
            live,
            images,
            augment,
            seed,
            files,
        )
        self.views = views
        self.pool = images if pool is None else pool
        self.view: int | None = None  # the one that `rows` is of
        self.rows: NDArray[np.floating] | None = None  # mapped [images, classes]; None asks
        self.writes = True

    def __deepcopy__(self, memo: object) -> "Cached":
        return self  # as `Live`

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {
            "view": None,
            "rows": None,
        }  # a map would be sent to another process as an array

    def to(self, device: torch.device) -> "Cached":
        """Move the net; returns itself."""
        self.live.to(device)
        self.files = replace(self.files, device=device.type)
        return self

    def prepare(self, view: int) -> None:
        """Open the view's file, made now if need be, by this process or another."""
        self.view, self.rows = view, None
        try:
            self.rows = self.files.open(view)
            if self.rows is None and self.writes:
                self.rows = self._made(view)
        except (OSError, CannotWrite) as error:
            self.writes = False
            reason = getattr(error, "strerror", None) or error
            say(
                f"teacher.cache: cannot keep the teacher's outputs in {self.files.folder} ({reason}); "
                "computing them with each batch"
            )

    def _made(self, view: int) -> NDArray[np.floating] | None:
        """A view's rows. While another process computes them, this one computes others, and then waits."""
        for each in range(view, max(view + 1, self.views)):
            if each != view and self.files.there(each):
                continue
            try:
                self._make(each, wait=False)
            except (OSError, CannotWrite):
                if each == view:
                    raise
                break  # there is no room for it, which is told when it is needed
            if (rows := self.files.open(view)) is not None:
                return rows
        self._make(view, wait=True)  # in case who was at it has failed
        return self.files.open(view)

    def _make(self, view: int, *, wait: bool) -> None:
        """Compute a view, unless another process is at it, or has made it meanwhile."""
        with self.files.claim(view, wait=wait) as mine:
            if mine and self.files.open(view) is None:
                self.files.write(view, self._compute(view))

    def __call__(self, x: Tensor, index: Tensor, view: int) -> Tensor:
        """The logits for x [B, C, H, W] in [0, 1] and index int64 [B]: float32 [B, classes]."""
        if self.rows is None or view != self.view:
            return self.live(x, index, view)
        return torch.from_numpy(self.rows[index.cpu().numpy()]).to(x.device).float()

    def _compute(self, view: int) -> Iterator[NDArray[np.floating]]:
        """All rows of a view, some at a time."""
        count, _, *size = self.images.pixels.shape
        steps = torch.split(torch.arange(count), STEP * chunk_of(*size))
        for index in _shown(steps, f"teacher's outputs for view {view}"):
            pixels, here = (
                self.images.pixels[index].to(self.live.device),
                index.to(self.live.device),
            )
            x = make_views(
                pixels, here, seed=self.seed, view=view, augment=self.augment, pool=self.pool
            )
            yield self.live.ask(x.contiguous(memory_format=torch.channels_last)).cpu().numpy()


def _shown(parts: Sequence[Tensor], what: str) -> Iterator[Tensor]:
    """Each part in turn; from some seconds on it is shown how far that has got."""
    started, shown = time.perf_counter(), False
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task(what, total=len(parts))
    try:
        for i, part in enumerate(parts, start=1):
            yield part
            progress.update(task, completed=i)
            if not shown and time.perf_counter() - started > PATIENCE:
                shown = True
                if console.is_terminal:
                    progress.start()
                else:
                    say(f"computing {what}, once")
    finally:
        progress.stop()
