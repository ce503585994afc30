"""The mAP of an epoch's validation, where an image may have several labels."""

import torch
from torch import Tensor
from torchmetrics import Metric

from kd.measure.label_metrics import mean_average_precision


class MeanAveragePrecision(Metric):
    """The mAP of all validation images of an epoch, on all ranks; NaN if no class has one."""

    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take a batch: logits [B, C], and labels, 0 and 1, [B, C]."""
        self.logits.append(logits)
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """Compute the mAP, a scalar."""
        both = [torch.cat([*each]).cpu() for each in (self.logits, self.labels)]
        found = mean_average_precision(both[0], both[1])
        return torch.tensor(torch.nan if found is None else found)
