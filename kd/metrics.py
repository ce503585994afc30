"""How good a net is: metrics of its logits on a part of the data, and what two nets differ by."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from sklearn.metrics import recall_score, roc_auc_score
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from kd.data.base import DataModule, Images
from kd.nets.build import normalization_of
from kd.views import normalize, to_unit

BOOTSTRAP = 10_000


@torch.no_grad()
def predict_logits(net: nn.Module, data: DataModule, images: Images) -> Tensor:
    """A net's logits for images as they are (no augmentation), under the net's own normalisation or the data's.

    Returns:
        float32 [N, C] on the CPU, in the order of `images`. The net is left in evaluation mode.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = net.to(device).eval()
    size = data.evaluation_batch  # a batch at a time: the images may be more than fit in memory
    batches = (images.pixels[i : i + size].to(device) for i in range(0, len(images), size))
    mean, std = normalization_of(net, data.statistics)
    logits = torch.cat([net(normalize(to_unit(pixels), mean, std)).float().cpu() for pixels in batches])
    net.cpu()
    return logits


def summary(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> dict[str, Any]:
    """Metrics of logits [N, C] against labels [N].

    Args:
        teacher: the teacher's logits [N, C] for the same images.

    Returns:
        `accuracy` (a fraction) with `accuracy_ci95` (Wilson 1927, score interval), `balanced_accuracy` (mean recall
        over the classes present), `nll` (nats per image), `ece` (expected calibration error, 15 equal bins of
        confidence, Guo et al. 2017), and `agreement`, the share of images on which the teacher chooses the same class
        (None without a teacher). For two classes also `sensitivity` and `specificity`, the recall of the second class
        and of the first, and `auroc`, the area under the ROC curve of the second (None where a class is not present).
    """
    chosen = logits.argmax(1)
    right = int((chosen == labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(method="wilson")
    ece = multiclass_calibration_error(logits.softmax(1), labels, num_classes=logits.shape[1], n_bins=15)
    return {
        "accuracy": right / len(labels),
        "accuracy_ci95": [float(interval.low), float(interval.high)],
        "balanced_accuracy": _balanced_accuracy(chosen, labels),
        "nll": float(F.cross_entropy(logits.double(), labels)),
        "ece": float(ece),
        "agreement": float((chosen == teacher.argmax(1)).double().mean()) if teacher is not None else None,
        **(_of_two_classes(logits, labels) if logits.shape[1] == 2 else {}),
    }


def _balanced_accuracy(chosen: Tensor, labels: Tensor) -> float:
    total = torch.bincount(labels).double()
    right = torch.bincount(labels[chosen == labels], minlength=len(total)).double()
    return float((right / total)[total > 0].mean())


def _of_two_classes(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    truth, chosen, present = labels.numpy(), logits.argmax(1).numpy(), set(labels.tolist())
    score = (logits[:, 1].double() - logits[:, 0].double()).numpy()  # no ties, as probabilities near 0 and 1 have
    return {
        "sensitivity": float(recall_score(truth, chosen, pos_label=1)) if 1 in present else None,
        "specificity": float(recall_score(truth, chosen, pos_label=0)) if 0 in present else None,
        "auroc": float(roc_auc_score(truth, score)) if present == {0, 1} else None,
    }


def paired(student: Tensor, baseline: Tensor, labels: Tensor, seed: int = 0) -> dict[str, Any]:
    """What the student gains over the baseline, paired over the same test images.

    Args:
        student, baseline: logits [N, C].
        labels: [N].

    Returns:
        `gain` in accuracy (a fraction); `gain_ci95`, a percentile bootstrap over images; `p_value`, McNemar's exact
        two-sided test (1947) on the images that only one of the two gets right. They tell how far the gain holds for
        other test images of the same two trained nets; how far it holds for other seeds takes other seeds.
    """
    s = (student.argmax(1) == labels).numpy().astype(np.float64)
    b = (baseline.argmax(1) == labels).numpy().astype(np.float64)
    difference = s - b
    counts = [int((difference == value).sum()) for value in (-1, 0, 1)]
    # Only these three counts matter, so resampling images is drawing the counts from a multinomial.
    draws = np.random.default_rng(seed).multinomial(len(labels), np.array(counts) / len(labels), BOOTSTRAP)
    low, high = np.quantile((draws[:, 2] - draws[:, 0]) / len(labels), [0.025, 0.975])
    lost, _, won = counts
    p_value = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return {"gain": float(difference.mean()), "gain_ci95": [float(low), float(high)], "p_value": float(p_value)}
