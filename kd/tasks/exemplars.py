"""Exemplars: which images of a class are kept when the next classes come, and what they are used
for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.data.base import DataModule, Images
from kd.files.store import Done
from kd.measure.metrics import predict_logits
from kd.nets.grow import Grown
from kd.stages.result import kept, load_net, logits_of
from kd.tasks.data import TaskData
from kd.tasks.schedule import Incremental


class Features(nn.Module):
    """A net up to its last layer, features at unit length.

    X [B, C, H, W] -> [B, number of features].
    """

    def __init__(self, net: Grown) -> None:
        super().__init__()
        self.net, self.normalization = net, getattr(net, "normalization", None)

    def forward(self, x: Tensor) -> Tensor:
        """Divided by their length, as Rebuffi et al. 2017 do throughout."""
        return nn.functional.normalize(self.net.features(x), dim=1)


def features_of(done: Done, data: DataModule, images: Images) -> Tensor:
    """A finished stage's features of images as they are, at unit length.

    Float64 [N, number of features].
    """
    net = load_net(done)
    assert isinstance(net, Grown)
    return predict_logits(Features(net), data, images).double()


def herding(features: Tensor, count: int) -> list[int]:
    """The images whose features' mean, as they are added one by one, stays nearest to that of all.

    Rebuffi et al. 2017, "iCaRL", algorithm 4: the k-th is the one that makes | mean - (x + sum of
    those before) / k | least. So any number of the first ones is a good choice too, and giving some
    up is dropping the last.

    Args:
        features: of the images of one class, [N, D].
        count: how many to choose; all, where there are fewer.

    Returns:
        their positions, the best first; of several that are equally good the first.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    left, chosen = torch.ones(len(features), dtype=torch.bool), list[int]()
    for k in range(1, min(count, len(features)) + 1):
        distance = (mean - (features + total) / k).norm(dim=1).where(left, torch.inf)
        best = int(distance.argmin())
        chosen.append(best)
        left[best] = False
        total = total + features[best]
    return chosen


class Memory:
    """The images that are kept, of all classes learned so far.

    A class's images are chosen once, by the net that has just learned it; as more classes come and
    the memory is of fixed size, each gives up those chosen last.
    """

    def __init__(self, source: TaskData, asked: Incremental) -> None:
        self.source, self.asked = source, asked

    def each(self, classes: int) -> int:
        """How many are kept of each class when so many classes are known."""
        return (
            self.asked.exemplars
            if self.asked.exemplars_per == "class"
            else self.asked.exemplars // classes
        )

    def kept(self, done: Sequence[Done]) -> list[Images]:
        """The exemplars of each class after these tasks, labelled by place.

        Args:
            done: the finished stage of each task.
        """
        count = self.each(self.source.places(len(done) - 1).stop)
        train = self.source.train
        return [
            train.at(self._ranking(stage, place)[:count])
            for task, stage in enumerate(done)
            for place in self.source.places(task)
        ]

    def stored(self, done: Sequence[Done], new: int) -> Tensor:
        """What was said of each exemplar when it was kept, for the training images of the next
        task.

        Args:
            new: number of its own images, of which nothing is stored.

        Returns:
            float32 [new + exemplars, classes known], NaN where nothing was said.
        """
        width, kept = self.source.places(len(done) - 1).stop, iter(self.kept(done))
        rows = [torch.full((new, width), torch.nan)]
        for task, stage in enumerate(done):
            for _ in self.source.places(task):
                logits = logits_of(stage, self.source.data, next(kept))
                rows.append(
                    nn.functional.pad(logits, (0, width - logits.shape[1]), value=torch.nan)
                )
        return torch.cat(rows)

    def means(self, done: Sequence[Done]) -> Tensor:
        """The exemplars' mean feature under the last net, at unit length.

        [classes known, number of features].
        """
        features = [features_of(done[-1], self.source.data, each) for each in self.kept(done)]
        return nn.functional.normalize(torch.stack([each.mean(0) for each in features]), dim=1)

    def _ranking(self, stage: Done, place: int) -> Tensor:
        """A class's images in the order in which they are kept, as positions among all training
        images.
        """
        mine = (self.source.train.labels == place).nonzero()[:, 0]
        images = self.source.train.at(mine)
        count = self.each(
            stage.record["spec"]["shape"][2]
        )  # at the time; later it can only be less

        def chosen() -> Tensor:
            return torch.tensor(herding(features_of(stage, self.source.data, images), count))

        return mine[
            kept(stage, f"exemplars-{images.fingerprint[:16]}-{count}", chosen, "positions")
        ]


def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    """Minus the distance to each class's mean: the scores of Rebuffi et al. 2017, algorithm 1.

    Args:
        features: of images, [N, D].
        means: of classes, [C, D].

    Returns:
        [N, C]; the largest is the class.
    """
    return -torch.cdist(features, means)
