"""Exemplars: which images of a class are kept for later tasks, and their uses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.data.base import DataModule, Images
from kd.files.store import StageResult
from kd.measure.metrics import predict_logits
from kd.nets.grow import Grown
from kd.stages.result import compute_once, load_net, logits_of
from kd.tasks.data import TaskData
from kd.tasks.schedule import Incremental


class Features(nn.Module):
    """Net up to its last layer, with features scaled to length 1.

    x [B, C, H, W] -> [B, number of features].
    """

    def __init__(self, net: Grown) -> None:
        super().__init__()
        self.net = net
        self.normalization = getattr(net, "normalization", None)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features for x [B, C, H, W] at length 1 (Rebuffi et al. 2017); [B, features]."""
        return nn.functional.normalize(self.net.features(x), dim=1)


def features_of(result: StageResult, data: DataModule, images: Images) -> Tensor:
    """Compute a finished stage's features of unaugmented images, scaled to length 1.

    Returns:
        float64 [N, number of features].
    """
    net = load_net(result)
    assert isinstance(net, Grown)
    return predict_logits(Features(net), data, images).double()


def herding(features: Tensor, count: int) -> list[int]:
    """Select exemplars by herding: their running mean feature stays nearest to that of all images.

    Rebuffi et al. 2017, "iCaRL", algorithm 4: the k-th minimises | mean - (x + sum of those before)
    / k |. So any prefix is a good choice too, and shrinking drops the last.

    Args:
        features: of the images of one class, [N, D].
        count: how many to choose; all if there are fewer.

    Returns:
        their positions, best first; the first of equal ones.
    """
    mean = features.mean(0)
    total = torch.zeros_like(features[0])
    left = torch.ones(len(features), dtype=torch.bool)
    chosen = list[int]()
    for k in range(1, min(count, len(features)) + 1):
        distance = (mean - (features + total) / k).norm(dim=1).where(left, torch.inf)
        best = int(distance.argmin())
        chosen.append(best)
        left[best] = False
        total = total + features[best]
    return chosen


class Memory:
    """Images that are kept, of all classes learned so far.

    A class's images are ranked once, by the net that has just learned it. In a memory of fixed size
    each class gives up its last ones as classes are added.
    """

    def __init__(self, source: TaskData, asked: Incremental) -> None:
        self.source = source
        self.asked = asked

    def each(self, classes: int) -> int:
        """Return the number of images kept per class when `classes` are known."""
        return (
            self.asked.exemplars
            if self.asked.exemplars_per == "class"
            else self.asked.exemplars // classes
        )

    def images(self, results: Sequence[StageResult]) -> list[Images]:
        """Return the exemplars of each class after these tasks, labelled by position.

        Args:
            results: finished stage of each task.
        """
        count = self.each(self.source.places(len(results) - 1).stop)
        train = self.source.train
        return [
            train.at(self._ranking(stage, place)[:count])
            for task, stage in enumerate(results)
            for place in self.source.places(task)
        ]

    def stored_logits(self, results: Sequence[StageResult], new: int) -> Tensor:
        """Return the stored logits for the training images of the next task.

        Args:
            new: number of its own images, which have no stored logits.

        Returns:
            float32 [new + exemplars, classes known], NaN where nothing is stored.
        """
        width = self.source.places(len(results) - 1).stop
        exemplars = iter(self.images(results))
        rows = [torch.full((new, width), torch.nan)]
        for task, stage in enumerate(results):
            for _ in self.source.places(task):
                logits = logits_of(stage, self.source.data, next(exemplars))
                rows.append(
                    nn.functional.pad(logits, (0, width - logits.shape[1]), value=torch.nan)
                )
        return torch.cat(rows)

    def means(self, results: Sequence[StageResult]) -> Tensor:
        """Return the exemplars' mean features under the last net, at length 1.

        [classes known, number of features].
        """
        features = [
            features_of(results[-1], self.source.data, each) for each in self.images(results)
        ]
        return nn.functional.normalize(torch.stack([each.mean(0) for each in features]), dim=1)

    def _ranking(self, stage: StageResult, place: int) -> Tensor:
        """Rank a class's images, as positions among all training images; int64 [kept]."""
        mine = (self.source.train.labels == place).nonzero()[:, 0]
        images = self.source.train.at(mine)
        # At that time; later it can only shrink
        count = self.each(stage.record.spec.shape[2])

        def choose() -> Tensor:
            return torch.tensor(herding(features_of(stage, self.source.data, images), count))

        return mine[
            compute_once(stage, f"exemplars-{images.fingerprint[:16]}-{count}", choose, "positions")
        ]


def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    """Return minus the distance to each class's mean (Rebuffi et al. 2017, algorithm 1).

    Args:
        features: of images, [N, D].
        means: of classes, [C, D].

    Returns:
        [N, C]; the largest is the prediction.
    """
    return -torch.cdist(features, means)
