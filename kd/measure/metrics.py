"""How good a net is: metrics of its logits on a part of the data, and what two nets differ by."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import recall_score
from torch import Tensor, nn

from kd.data.base import DataModule, Images
from kd.data.views import normalize, to_unit
from kd.log import waiting
from kd.nets.build import normalization_of
from kd.nets.pretrained import Normalization

BOOTSTRAP = 10_000
BINS = 15
CONFUSION = 100  # classes up to which a report holds the whole confusion matrix
WORST = 20  # classes and pairs of classes that it holds above that
BLOCK = 2**21  # numbers in float64 at a time, 16 MB: a metric then takes little beyond the logits


def predict_logits(net: nn.Module, data: DataModule, images: Images) -> Tensor:
    """A net's logits for images as they are (no augmentation), under the net's own normalisation or
    the data's.

    Returns:
        float32 [N, C] on the CPU, in the order of `images`. The net is left in evaluation mode.
    """
    return ask(net, images, normalization_of(net, data.statistics))


@torch.no_grad()
def ask(
    net: nn.Module, images: Images, normalization: Normalization, *, mirrored: bool = False
) -> Tensor:
    """A net's logits for images of any data set, under this normalisation.

    Otherwise as `predict_logits`.

    Args:
        mirrored: ask about the images' mirror images, left to right, instead.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    size = images.pixels.batch  # a batch at a time: the images may be more than fit in memory
    found = torch.empty(0)
    for i in waiting(range(0, len(images), size), f"asking a net about {len(images)} images"):
        x = to_unit(images.pixels[i : i + size].to(device)).contiguous(
            memory_format=torch.channels_last
        )
        x = x.flip(3) if mirrored else x
        logits = net(normalize(x, *normalization)).float().cpu()
        if i == 0:  # filled in place: gathering the batches at the end would take twice the memory
            found = torch.empty(len(images), *logits.shape[1:])
        found[i : i + size] = logits
    net.cpu()
    return found


def summary(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> dict[str, Any]:
    """Metrics of logits against labels. Takes little memory beyond the logits, however many there
    are.

    Args:
        logits: [N, C], N at least 1.
        labels: int64 [N].
        teacher: the teacher's logits [N, C] for the same images.

    Returns:
        `accuracy` (a fraction) with `accuracy_ci95` (Wilson 1927, score interval),
        `balanced_accuracy` (mean recall over the classes present), `nll` (nats per image), `brier`
        (squared distance of the probabilities from the label's one-hot vector, summed over the
        classes, mean over the images, in [0, 2]; Brier 1950), `ece` (expected calibration error,
        Guo et al. 2017, eq. 3) with its `reliability` bins, `auroc` (area under the ROC curve, of
        each class against the rest, mean over the classes; None where a class is not present),
        `confusion` (counts [C][C], true class by chosen class; None for more than 100 classes,
        which have `worst_classes` and `confused_pairs` instead, see `worst_of`), and `agreement`,
        the share of images on which the teacher chooses the same class (None without a teacher).
        For two classes also `sensitivity` and `specificity`, the recall of the second class and of
        the first.
    """
    chosen, classes = logits.argmax(1), logits.shape[1]
    right = int((chosen == labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(method="wilson")
    sureness = probability_metrics(logits, labels)
    few = classes <= CONFUSION
    return {
        "accuracy": right / len(labels),
        "accuracy_ci95": [float(interval.low), float(interval.high)],
        "balanced_accuracy": _balanced_accuracy(chosen, labels),
        **{name: sureness[name] for name in ("nll", "brier", "ece")},
        "agreement": None
        if teacher is None
        else float((chosen == teacher.argmax(1)).double().mean()),
        "auroc": auroc(logits, labels),
        **(_of_two_classes(chosen, labels) if classes == 2 else {}),
        "confusion": confusions(labels, chosen, classes).tolist() if few else None,
        **({} if few else worst_of(labels, chosen, classes)),
        "reliability": sureness["reliability"],
    }


def probability_metrics(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, Any]:
    """Those metrics of `summary` that a temperature changes.

    `nll`, `brier`, `ece` and its `reliability` bins.

    Args:
        logits: [N, C].
        labels: int64 [N].
        temperature: above 0; the logits are divided by it.
    """
    nll, brier, confidence = torch.empty(3, len(labels), dtype=torch.float64)
    for at, block in row_blocks(logits):
        scaled = block / temperature
        p = scaled.softmax(1)
        nll[at] = F.cross_entropy(scaled, labels[at], reduction="none")
        brier[at] = (p - F.one_hot(labels[at], logits.shape[1])).square().sum(1)
        confidence[at] = p.amax(1)
    bins = reliability(confidence, logits.argmax(1) == labels)
    apart = [
        each["count"] * abs(each["confidence"] - each["accuracy"]) for each in bins if each["count"]
    ]
    return {
        "nll": float(nll.mean()),
        "brier": float(brier.mean()),
        "ece": sum(apart) / len(labels),
        "reliability": bins,
    }


def row_blocks(*several: Tensor) -> Iterator[tuple[Any, ...]]:
    """Some rows at a time: which as a slice, then those rows of each of the tensors [N, C] in
    float64.
    """
    count, width = several[0].shape
    rows = max(1, BLOCK // width)
    for i in range(0, count, rows):
        at = slice(i, i + rows)
        yield at, *(each[at].double() for each in several)


def confusions(labels: Tensor, chosen: Tensor, classes: int) -> NDArray[np.int64]:
    """How many images of each true class (a row) were given each class (a column).

    [classes, classes].
    """
    counts = np.bincount((labels * classes + chosen).numpy(), minlength=classes * classes)
    return counts.reshape(classes, classes)


def worst_of(labels: Tensor, chosen: Tensor, classes: int) -> dict[str, list[dict[str, int]]]:
    """What a confusion matrix of many classes is looked at for.

    Args:
        labels, chosen: int64 [N], from 0.
        classes: number of them.

    Returns:
        `worst_classes`, up to 20 with the lowest recall, each with `label`, `images` and how many
        are `right`; and `confused_pairs`, up to 20 most frequent mistakes, each with the `label`,
        the class `chosen` and `images`. Of equal ones the lower label comes first.
    """
    images = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[chosen == labels], minlength=classes)
    present = images.nonzero()[:, 0].tolist()
    recalls = (right / images.clamp(min=1)).tolist()
    worst = sorted(present, key=lambda label: (recalls[label], label))[:WORST]
    wrong = chosen != labels
    mistakes = (labels * classes + chosen)[wrong]
    pairs, counts = mistakes.unique(return_counts=True)  # type: ignore[no-untyped-call]
    most = counts.argsort(descending=True, stable=True)[:WORST]
    return {
        "worst_classes": [
            {"label": label, "images": int(images[label]), "right": int(right[label])}
            for label in worst
        ],
        "confused_pairs": [
            {"label": pair // classes, "chosen": pair % classes, "images": count}
            for pair, count in zip(pairs[most].tolist(), counts[most].tolist(), strict=True)
        ],
    }


def _balanced_accuracy(chosen: Tensor, labels: Tensor) -> float:
    total = torch.bincount(labels).double()
    right = torch.bincount(labels[chosen == labels], minlength=len(total)).double()
    return float((right / total)[total > 0].mean())


def reliability(confidence: Tensor, right: Tensor) -> list[dict[str, Any]]:
    """How often a net is right by how sure it is.

    15 bins of equal width, (0, 1/15] to (14/15, 1] (Guo et al. 2017).

    Args:
        confidence: [N], the probability of the chosen class.
        right: [N], whether that class is the true one.

    Returns:
        for each bin `count` (images), and their mean `confidence` and `accuracy`, fractions; both
        None in an empty bin.
    """
    where = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    count = torch.bincount(where, minlength=BINS)
    sums = (torch.bincount(where, each, BINS) for each in (confidence, right.double()))
    means = torch.stack([each / count for each in sums], 1).tolist()
    return [
        {"count": int(n), "confidence": sure if n else None, "accuracy": share if n else None}
        for n, (sure, share) in zip(count, means, strict=True)
    ]


def auroc(logits: Tensor, labels: Tensor) -> float | None:
    """Area under the ROC curve of each class against the rest, mean over the classes.

    None where one is not present.

    For two classes that is the area under the one curve that there is. The area is the chance that
    an image of the class ranks above another one, ties counting half (Hanley & McNeil 1982): it
    follows from the ranks of the class's own images, so a class takes one sort.

    Args:
        logits: [N, C].
        labels: int64 [N].
    """
    n, classes = logits.shape
    images = torch.bincount(labels, minlength=classes)
    if int(images.min()) == 0 or int(images.max()) == n:
        return None
    order = labels.argsort(stable=True)
    own = dict(enumerate(torch.split(order, images.tolist())))
    width, areas = max(1, BLOCK // n), []
    for start, odds in _column_blocks(logits, width):
        ranked = np.sort(odds, axis=1)
        for row, column in enumerate(odds):
            scores = column[own[start + row].numpy()]
            below = np.searchsorted(ranked[row], scores, "left").astype(np.float64)
            up_to = np.searchsorted(ranked[row], scores, "right")
            # Their mean ranks among all images, less those among themselves, count the pairs.
            pairs = (below + up_to + 1).sum() / 2 - len(scores) * (len(scores) + 1) / 2
            areas.append(pairs / (len(scores) * (n - len(scores))))
    return float(np.mean(areas))


def _column_blocks(logits: Tensor, width: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Log odds of some classes at a time, [classes, N], each block with its first class.

    Probabilities near 0 and 1 have ties, which log odds have not. For the class with the highest
    logit they are taken from the other logits, as 1 minus its probability has no digits left.
    """
    n, classes = logits.shape
    chosen, top, total, others = logits.argmax(1), *torch.empty(3, n, dtype=torch.float64)
    for at, block in row_blocks(logits):
        top[at] = block.amax(1)
        total[at] = (block - top[at, None]).exp().sum(1).log()
        others[at] = block.scatter(1, chosen[at, None], -torch.inf).logsumexp(1)
    for start in range(0, classes, width):
        log_p = logits[:, start : start + width].T.double() - top - total
        odds = log_p - torch.log1p(-log_p.exp())
        inside = (chosen >= start) & (chosen < start + width)
        odds[chosen[inside] - start, inside.nonzero()[:, 0]] = (top - others)[inside]
        yield start, odds.numpy()


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
        `gain` in accuracy (a fraction); `gain_ci95`, a percentile bootstrap over images; `p_value`,
        McNemar's exact two-sided test (1947) on the images that only one of the two gets right.
        They tell how far the gain holds for other test images of the same two trained nets; how far
        it holds for other seeds takes other seeds.
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
