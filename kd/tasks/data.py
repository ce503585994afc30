"""Images of a task: its own classes, and the exemplars of earlier ones.

Labels are positions in the order of classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from kd.data.base import DataModule, Images, Split
from kd.errors import UserError
from kd.tasks.schedule import Task


class TaskData:
    """Data set whose classes come in tasks.

    A net's outputs follow the order of the classes, so labels here are positions in that order. The
    first task's classes are 0, 1, ... whatever the data calls them.

    Args:
        data: the whole data set.
        tasks: the data's labels of each task; classes in none of them are left out.

    Raises:
        UserError: an image may have several labels, so it is of no task alone.
    """

    def __init__(self, data: DataModule, tasks: Sequence[Task]) -> None:
        if data.split.train.multilabel:
            raise UserError(
                "data.task: found multilabel, whose images belong to no task alone; accepted by "
                "kd.incremental is multiclass"
            )
        self.data = data
        self.tasks = tasks
        self.order = [label for task in tasks for label in task]
        self.place = torch.full((len(data.classes),), -1)
        self.place[self.order] = torch.arange(len(self.order))
        self.train = self._of(data.split.train, range(len(self.order)), self.order)

    def places(self, task: int) -> range:
        """Return the positions of a task's classes; the first task is 0."""
        start = sum(map(len, self.tasks[:task]))
        return range(start, start + len(self.tasks[task]))

    def task(self, task: int, exemplars: Images | None = None) -> DataModule:
        """Return a task's data: its images, then the exemplars; validation and test of its classes.

        Args:
            exemplars: of earlier classes, labelled by position.
        """
        mine = self.places(task)
        found = self._narrow(mine, self.order[: mine.stop])
        if exemplars:
            found.split = replace(found.split, train=found.split.train.join(exemplars))
        return found

    def until(self, task: int) -> DataModule:
        """Return all images of the classes up to this task."""
        seen = range(self.places(task).stop)
        return self._narrow(seen, self.order[: seen.stop])

    def as_it_is(self) -> DataModule:
        """Return all images of all tasks, in the data's own class order."""
        return self._narrow(range(len(self.order)), sorted(self.order))

    def _of(self, images: Images, places: range, order: Sequence[int]) -> Images:
        """Select the images of these classes; labels are positions in `order`."""
        at = self.place[images.labels]
        chosen = images.at(((at >= places.start) & (at < places.stop)).nonzero()[:, 0])
        new = torch.full_like(self.place, -1)
        new[list(order)] = torch.arange(len(order))
        return Images(chosen.pixels, new[chosen.labels], chosen.groups)

    def _narrow(self, places: range, order: Sequence[int]) -> DataModule:
        split = self.data.split
        train, val, test = (
            self._of(part, places, order) for part in (split.train, split.val, split.test)
        )
        classes = tuple(self.data.classes[label] for label in order)
        return self.data.with_split(Split(train, val, test, classes))
