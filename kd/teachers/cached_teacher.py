"""Teacher with cached outputs: each view is computed once, by its first user, then read."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from kd.errors import WriteError
from kd.log import console, say
from kd.losses._ranks import together
from kd.nets.hooks import NetOutput
from kd.nets.layer_paths import FeaturePaths
from kd.teachers.live_teacher import LiveTeacher, chunk_of
from kd.teachers.sized_teacher import TeacherViews
from kd.teachers.view_files import ViewFiles

STEP = 8  # chunks of images prepared at a time
PATIENCE = 3.0  # seconds of computing before progress is shown


class CachedTeacher:
    """Reads a view's logits from its file; computes and writes the file first if there is none.

    Read or computed, the logits are equal: bit for bit on a CPU, and up to the last bits on an
    accelerator, whose kernels depend on the batch. If a file can be neither read nor written (disk
    full, no permission, `limit` reached), a warning is logged once and each batch is computed live.

    While another process computes the view that is needed, this one computes one of the next. So
    concurrent jobs share the work. The ranks of one training each compute their share of a view,
    which rank 0 writes. If another job computes it just then, they compute each batch live.

    Args:
        live: the teacher to ask, for logits or features too.
        views: of all training images, unlabelled ones included; a batch's `index` refers to them.
        files: files for these images, views and this teacher.
        needed: number of views certain to be needed.
    """

    def __init__(
        self,
        live: LiveTeacher,
        views: TeacherViews,
        *,
        files: ViewFiles,
        needed: int = 0,
    ) -> None:
        self.live = live
        self.paths: FeaturePaths | None = live.paths
        self.views = views
        self.files = files
        self.needed = needed
        self.view: int | None = None  # the view that `rows` belongs to
        self.rows: NDArray[np.generic] | None = None  # mapped, one an image; None: ask live
        self.writes = True

    def __deepcopy__(self, memo: object) -> "CachedTeacher":
        return self  # as in `LiveTeacher`

    def __getstate__(self) -> dict[str, object]:
        # Pickling would send a map to another process as an array
        return self.__dict__ | {
            "view": None,
            "rows": None,
        }

    def to(self, device: torch.device) -> "CachedTeacher":
        """Move the net; returns itself."""
        self.live.to(device)
        self.files = replace(self.files, device=device.type)
        return self

    def prepare(self, view: int) -> None:
        """Open the view's file, after this or another process has made it."""
        self.view = view
        self.rows = None
        try:
            if together():
                self._make_together(view)
            self.rows = self.files.open(view)
            if self.rows is None and self.writes and not together():
                self.rows = self._rows_of(view)
        except (OSError, WriteError) as error:
            self.writes = False
            reason = getattr(error, "strerror", None) or error
            say(
                f"teacher.cache: cannot keep the teacher's outputs in {self.files.folder} "
                f"({reason}); computing them with each batch"
            )

    def _rows_of(self, view: int) -> NDArray[np.generic] | None:
        """Return a view's rows; if another process computes them, compute other views, then
        wait.
        """
        for each in range(view, max(view + 1, self.needed)):
            if each != view and self.files.there(each):
                continue
            try:
                self._make(each, wait=False)
            except (OSError, WriteError):
                if each == view:
                    raise
                break  # no room; the warning comes when the view is needed
            if (rows := self.files.open(view)) is not None:
                return rows
        self._make(view, wait=True)  # in case the process at work has failed
        return self.files.open(view)

    def _make(self, view: int, *, wait: bool) -> None:
        """Compute a view, unless another process does or did."""
        with self.files.claim(view, wait=wait) as mine:
            if mine and self.files.open(view) is None:
                self.files.write(view, self._compute(view))

    def _make_together(self, view: int) -> None:
        """Compute a view on all ranks, unless it is there; rank 0 decides, and writes it.

        Raises:
            OSError, WriteError: on rank 0, after the others went on.
        """
        device = self.live.device
        if dist.get_rank():
            steps = iter(self._steps())
            while agree(True, device):
                self._gather(view, next(steps))
            return
        with ExitStack() as last:
            last.callback(agree, False, device)
            if self.writes and self.files.open(view) is None:
                with self.files.claim(view, wait=False) as mine:
                    if mine:
                        self.files.write(view, self._compute(view))

    def _gather(self, view: int, index: Tensor) -> Tensor:
        """Compute the share of this rank; return the rows of all ranks, as bytes, on rank 0."""
        rank = dist.get_rank()
        ranks = dist.get_world_size()
        most = -(-len(index) // ranks)
        own = index[rank * most : (rank + 1) * most]
        # Equally many on each rank
        mine = torch.zeros(most, self.files.record.bytes, dtype=torch.uint8)
        if len(own):
            rows = self._ask(view, own).view(np.uint8).reshape(len(own), -1)
            mine[: len(own)] = torch.from_numpy(rows)
        mine = mine.to(self.live.device)
        parts = [torch.empty_like(mine) for _ in range(ranks)] if rank == 0 else None
        dist.gather(mine, parts)
        return torch.cat(parts)[: len(index)] if parts else mine

    def __call__(self, x: Tensor, index: Tensor, view: int) -> NetOutput:
        """Return float32 logits [B, classes] for x [B, C, H, W] in [0, 1] and index int64 [B]; and
        features, where they are stored.
        """
        if self.rows is None or view != self.view:
            return self._live(x, index, view)
        count = len(self.rows)
        again = index >= count  # in a further round of the epoch, as another view
        if again.any() and self.files.record.features:
            return self._live(x, index, view)
        rows = self.rows[index.cpu().numpy() % count]
        found = self.live.complete(self.files.record.unpack(rows, x.device))
        if again.any():
            found.logits[again] = self._live(x[again], index[again], view).logits
        return found

    def _live(self, x: Tensor, index: Tensor, view: int) -> NetOutput:
        """Ask the net about views x [B, C, H, W] of images, int64 [B]."""
        own = self.views(index, view, x.device) if self.views.drawn_at else x
        return self.live(own, index, view)

    def _steps(self) -> Sequence[Tensor]:
        """Return the images of each step: STEP chunks for each rank."""
        count, _, *size = self.views.images.pixels.shape
        ranks = dist.get_world_size() if together() else 1
        return torch.split(torch.arange(count), STEP * chunk_of(*size) * ranks)

    def _compute(self, view: int) -> Iterator[NDArray[np.generic]]:
        """Compute all rows of a view, block by block; together with the other ranks, if any."""
        for index in _with_progress(self._steps(), f"teacher's outputs for view {view}"):
            if together():
                agree(True, self.live.device)
                yield self._gather(view, index).cpu().numpy()
            else:
                yield self._ask(view, index)

    def _ask(self, view: int, index: Tensor) -> NDArray[np.generic]:
        """Compute the rows of images, int64 [n], as augmented in a view."""
        x = self.views(index, view, self.live.device)
        return self.files.record.pack(self.live(x, index, view))


def agree(choice: bool, device: torch.device) -> bool:
    """Return on every rank what rank 0 has chosen."""
    box = torch.tensor([choice], dtype=torch.uint8, device=device)
    dist.broadcast(box, src=0)
    return bool(box)


def _with_progress(parts: Sequence[Tensor], what: str) -> Iterator[Tensor]:
    """Iterate over the parts; show progress after some seconds."""
    started = time.perf_counter()
    shown = False
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
