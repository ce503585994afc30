"""The views of training images in each epoch, and the labels of those views."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd.data.images import Images
from kd.data.views import Augment, make_views, mixed_target, view_number
from kd.shape import ImageSize

APART = 7_368_787  # between the seeds of the weak and the strong view of an image


@dataclass(frozen=True)
class EpochViews:
    """Makes the views of a batch by their number, so that a teacher can store its outputs by view.

    Attributes:
        augment: what may happen to an image.
        seed: seeds the draws, at least 0.
        cycle: number of views that are repeated in turn; None for a new one in each epoch.
        pool: source of the second image of a mixed view; None where views do not mix.
        count: number of training images; in further rounds of an epoch their numbers go on from it.
            None: there are no further rounds.
    """

    augment: Augment
    seed: int
    cycle: int | None = None
    pool: Images | None = None
    count: int | None = None

    def number(self, epoch: int) -> int:
        """Return the view of an epoch, both counted from 0."""
        return view_number(epoch, self.cycle)

    def positions(self, index: Tensor) -> Tensor:
        """Return the images' positions in the training part by their numbers, int64 [B]."""
        return index if self.count is None else index % self.count

    def images(self, pixels: Tensor, index: Tensor, view: int) -> Tensor:
        """Make the views of a batch.

        Args:
            pixels: uint8 [B, C, H, W], as the training's loader reads them.
            index: the images' numbers in the training part, int64 [B].

        Returns:
            float32 [B, C, H, W] in [0, 1], channels last in memory.
        """
        x = make_views(
            pixels, index, seed=self.seed, view=view, augment=self.augment, pool=self.pool
        )
        return x.contiguous(memory_format=torch.channels_last)

    def targets(
        self, labels: Tensor, index: Tensor, view: int, classes: int, size: ImageSize
    ) -> Tensor:
        """Make the labels of those views.

        Args:
            labels: int64 [B], -1 for none.
            classes: number of them.
            size: of an image, in pixels.

        Returns:
            int64 [B], -1 for none; of mixed views float32 [B, classes], a row of zeros for none.
        """
        if self.pool is None:
            return labels
        return mixed_target(
            labels,
            index,
            classes,
            size,
            seed=self.seed,
            view=view,
            augment=self.augment,
            pool=self.pool,
        )
