"""How good a net is: metrics of its logits on a part of the data, and what two nets differ by."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, recall_score, roc_auc_score
from torch import Tensor, nn

from kd.data.base import DataModule, Images
from kd.data.views import normalize, to_unit
from kd.log import waiting
from kd.nets.build import normalization_of
from kd.nets.pretrained import Normalization

BOOTSTRAP = 10_000
BINS = 15
CONFUSION = 100  # classes up to which a report holds the whole confusion matrix


def predict_logits(net: nn.Module, data: DataModule, images: Images) -> Tensor:
    """A net's logits for images as they are (no augmentation), under the net's own normalisation or the data's.

    Returns:
        float32 [N, C] on the CPU, in the order of `images`. The net is left in evaluation mode.
    """
    return ask(net, images, normalization_of(net, data.statistics))


@torch.no_grad()
def ask(
    net: nn.Module, images: Images, normalization: Normalization, *, mirrored: bool = False
) -> Tensor:
    """A net's logits for images of any data set, under this normalisation; otherwise as `predict_logits`.

    Args:
        mirrored: ask about the images' mirror images, left to right, instead.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    size = images.pixels.batch  # a batch at a time: the images may be more than fit in memory
    found = []
    for i in waiting(range(0, len(images), size), f"asking a net about {len(images)} images"):
        x = to_unit(images.pixels[i : i + size].to(device)).contiguous(
            memory_format=torch.channels_last
        )
        x = x.flip(3) if mirrored else x
        found.append(net(normalize(x, *normalization)).float().cpu())
    net.cpu()
    return torch.cat(found)


def summary(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> dict[str, Any]:
    """Metrics of logits [N, C] against labels [N], N at least 1.

    Args:
        teacher: the teacher's logits [N, C] for the same images.

    Returns:
        `accuracy` (a fraction) with `accuracy_ci95` (Wilson 1927, score interval), `balanced_accuracy` (mean recall
        over the classes present), `nll` (nats per image), `brier` (squared distance of the probabilities from the
        label's one-hot vector, summed over the classes, mean over the images, in [0, 2]; Brier 1950), `ece` (expected
        calibration error, Guo et al. 2017, eq. 3) with its `reliability` bins, `auroc` (area under the ROC curve, of
        each class against the rest, mean over the classes; None where a class is not present), `confusion` (counts
        [C][C], true class by chosen class; None for more than 100 classes), and `agreement`, the share of images on
        which the teacher chooses the same class (None without a teacher). For two classes also `sensitivity` and
        `specificity`, the recall of the second class and of the first.
    """
    chosen, classes = logits.argmax(1), logits.shape[1]
    right = int((chosen == labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(method="wilson")
    bins = reliability(logits, labels)
    apart = [
        each["count"] * abs(each["confidence"] - each["accuracy"]) for each in bins if each["count"]
    ]
    counts = (
        confusion_matrix(labels.numpy(), chosen.numpy(), labels=range(classes))
        if classes <= CONFUSION
        else None
    )
    return {
        "accuracy": right / len(labels),
        "accuracy_ci95": [float(interval.low), float(interval.high)],
        "balanced_accuracy": _balanced_accuracy(chosen, labels),
        "nll": float(F.cross_entropy(logits.double(), labels)),
        "brier": float(
            (logits.double().softmax(1) - F.one_hot(labels, classes)).square().sum(1).mean()
        ),
        "ece": sum(apart) / len(labels),
        "agreement": float((chosen == teacher.argmax(1)).double().mean())
        if teacher is not None
        else None,
        "auroc": auroc(logits, labels),
        **(_of_two_classes(chosen, labels) if classes == 2 else {}),
        "confusion": None if counts is None else counts.tolist(),
        "reliability": bins,
    }


def _balanced_accuracy(chosen: Tensor, labels: Tensor) -> float:
    total = torch.bincount(labels).double()
    right = torch.bincount(labels[chosen == labels], minlength=len(total)).double()
    return float((right / total)[total > 0].mean())


def reliability(logits: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """How often a net is right by how sure it is: 15 bins of equal width, (0, 1/15] to (14/15, 1] (Guo et al. 2017).

    Returns:
        for each bin `count` (images), and their mean `confidence` (the probability of the chosen class) and
        `accuracy`, fractions; both None in an empty bin.
    """
    confidence, chosen = logits.double().softmax(1).max(1)
    where = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    count = torch.bincount(where, minlength=BINS)
    sums = (torch.bincount(where, each, BINS) for each in (confidence, (chosen == labels).double()))
    means = torch.stack([each / count for each in sums], 1).tolist()
    return [
        {"count": int(n), "confidence": sure if n else None, "accuracy": right if n else None}
        for n, (sure, right) in zip(count, means, strict=True)
    ]


def auroc(logits: Tensor, labels: Tensor) -> float | None:
    """Area under the ROC curve of each class against the rest, mean over the classes; None where one is not present.

    For two classes that is the area under the one curve that there is.
    """
    # Ranked by log odds: probabilities near 0 and 1 have ties, which logits have not. For the class with the highest
    # logit they are taken from the other logits, as 1 minus its probability has no digits left.
    logits = logits.double()
    log_p, (top, chosen) = logits.log_softmax(1), logits.max(1, keepdim=True)
    others = logits.scatter(1, chosen, -torch.inf).logsumexp(1, keepdim=True)
    odds = (log_p - torch.log1p(-log_p.exp())).scatter(1, chosen, top - others)
    if int(torch.bincount(labels, minlength=logits.shape[1]).min()) == 0:
        return None
    areas = [
        roc_auc_score((labels == label).numpy(), odds[:, label].numpy())
        for label in range(logits.shape[1])
    ]
    return float(np.mean(areas))


def _of_two_classes(chosen: Tensor, labels: Tensor) -> dict[str, Any]:
    found, present = (labels.numpy(), chosen.numpy()), set(labels.tolist())
    names = (("sensitivity", 1), ("specificity", 0))
    return {
        name: float(recall_score(*found, pos_label=one)) if one in present else None
        for name, one in names
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
    draws = np.random.default_rng(seed).multinomial(
        len(labels), np.array(counts) / len(labels), BOOTSTRAP
    )
    low, high = np.quantile((draws[:, 2] - draws[:, 0]) / len(labels), [0.025, 0.975])
    lost, _, won = counts
    p_value = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return {
        "gain": float(difference.mean()),
        "gain_ci95": [float(low), float(high)],
        "p_value": float(p_value),
    }
