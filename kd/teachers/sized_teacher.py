"""Teacher that makes its views itself, at its own image size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd.data.images import Images
from kd.data.views import Augment, views_of
from kd.nets.hooks import NetOutput
from kd.teachers.live_teacher import Teacher


@dataclass(frozen=True)
class TeacherViews:
    """Views of the training images as the teacher gets them.

    Attributes:
        images: all training images, as the teacher reads them.
        augment, seed: of the views, as in training.
        pool: images that provide the second image of a mixed view; None for all training images.
        drawn_at: height and width that the student gets; None where the teacher gets the same.
    """

    images: Images
    augment: Augment
    seed: int
    pool: Images | None = None
    drawn_at: tuple[int, int] | None = None

    def __call__(self, index: Tensor, view: int, device: torch.device) -> Tensor:
        """Make a view of images, int64 [B]: float32 [B, C, H, W] in [0, 1], channels last."""
        x = views_of(
            self.images,
            index.cpu(),
            seed=self.seed,
            view=view,
            augment=self.augment,
            pool=self.images if self.pool is None else self.pool,
            device=device,
            drawn_at=self.drawn_at,
        )
        return x.contiguous(memory_format=torch.channels_last)


class SizedTeacher:
    """Teacher that is asked live about its own views of the batch's images.

    Args:
        teacher: is asked.
        views: at its size.
    """

    def __init__(self, teacher: Teacher, views: TeacherViews) -> None:
        self.teacher = teacher
        self.views = views
        self.paths = teacher.paths

    def __deepcopy__(self, memo: object) -> "SizedTeacher":
        return self  # as in `LiveTeacher`

    def to(self, device: torch.device) -> "SizedTeacher":
        """Move the net; returns itself."""
        self.teacher.to(device)
        return self

    def prepare(self, view: int) -> None:
        """Prepare for a view."""
        self.teacher.prepare(view)

    def __call__(self, x: Tensor, index: Tensor, view: int) -> NetOutput:
        """Return the outputs for its own views of images, int64 [B]; the student's are not used."""
        return self.teacher(self.views(index, view, x.device), index, view)
