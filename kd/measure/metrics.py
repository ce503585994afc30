"""Metrics of a net's logits, and the difference between two nets."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import f1_score, recall_score, roc_auc_score
from torch import Tensor, nn

from kd.data.base import DataModule, Images
from kd.data.views import normalize, to_unit
from kd.files.report_file import (
    ClassCount,
    ConfusedPair,
    Interval,
    Metrics,
    ProbabilityMetrics,
    ReliabilityBin,
)
from kd.log import waiting
from kd.measure.label_metrics import mean_average_precision, with_both
from kd.nets.build import normalization_of
from kd.nets.pretrained_weights import Normalization
from kd.ranks import current

BOOTSTRAP = 10_000
FEW_IMAGES = 30  # with fewer, the bootstrap's interval is too narrow
BINS = 15
CONFUSION = 100  # largest number of classes with a full confusion matrix in the report
WORST = 20  # classes and pairs of classes reported above that
WORTHWHILE = 4  # batches for each rank, for which sending them the net pays
BLOCK = 2**21  # float64 numbers per block, 16 MB: bounds a metric's memory beyond the logits


def predict_logits(net: nn.Module, data: DataModule, images: Images) -> Tensor:
    """Compute a net's logits for unaugmented images, under the net's normalisation or the data's.

    Returns:
        float32 [N, C] on the CPU, in the order of `images`. The net is left in evaluation mode.
    """
    return ask(net, images, normalization_of(net, data.statistics))


def ask(
    net: nn.Module, images: Images, normalization: Normalization, *, mirrored: bool = False
) -> Tensor:
    """Compute a net's logits for images of any data set, under the given normalisation.

    Otherwise like `predict_logits`. The ranks of a launch compute a share each, of whole batches,
    so that the logits are the same bits.

    Args:
        mirrored: use the horizontally flipped images instead.

    Returns:
        float32 [N, C] on the CPU.
    """
    asked = (net, images, normalization, mirrored)
    ranks = current()
    batches = -(-len(images) // images.pixels.batch)
    if ranks is None or dist.is_initialized() or batches < WORTHWHILE * ranks.launch.size:
        return _ask(*asked, 0, len(images))
    found = list[Tensor]()
    ranks.call(_ask_together, found, asked)
    return found[0]


def _ask_together(
    found: list[Tensor], asked: tuple[nn.Module, Images, Normalization, bool]
) -> None:
    """Compute the logits of this rank's share, as one of all ranks.

    Args:
        found: gets the logits of all images on rank 0.
        asked: as of `ask`.
    """
    images = asked[1]
    ranks = dist.get_world_size()
    rank = dist.get_rank()
    size = images.pixels.batch
    batches = -(-len(images) // size)
    ends = [min(len(images), batches * i // ranks * size) for i in range(ranks + 1)]
    counts = [end - start for start, end in itertools.pairwise(ends)]
    own = _ask(*asked, ends[rank], ends[rank + 1])
    padded = own.new_zeros(max(counts), *own.shape[1:])  # equally many on each rank
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in counts] if rank == 0 else None
    dist.gather(padded, parts)
    if parts:
        found.append(torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]))


@torch.no_grad()
def _ask(
    net: nn.Module,
    images: Images,
    normalization: Normalization,
    mirrored: bool,
    start: int,
    end: int,
) -> Tensor:
    """Compute the logits of the images from `start` to before `end`; see `ask`."""
    device = own_device()
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    size = images.pixels.batch  # batch by batch: the images may not fit in memory
    found = torch.empty(0)
    for i in waiting(range(start, end, size), f"asking a net about {end - start} images"):
        x = to_unit(images.pixels[i : min(i + size, end)].to(device)).contiguous(
            memory_format=torch.channels_last
        )
        x = x.flip(3) if mirrored else x
        logits = net(normalize(x, *normalization)).float().cpu()
        if i == start:  # filled in place: concatenating at the end would double the memory
            found = torch.empty(end - start, *logits.shape[1:])
        found[i - start : i - start + size] = logits
    net.cpu()
    return found


def own_device() -> torch.device:
    """Return the GPU of this process, which is one of its own in a launch; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks := current():
        return torch.device("cuda", ranks.launch.gpu % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def decisions(logits: Tensor, multilabel: bool) -> Tensor:
    """Return the class chosen, int64 [N]; of multi-label nets whether each is, bool [N, C].

    A label is given where its probability, the sigmoid of the logit [N, C], is above 1/2.
    """
    return logits > 0 if multilabel else logits.argmax(1)


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return which images are classified right, bool [N]; of several labels all must be right.

    Args:
        logits: [N, C].
        labels: int64 [N], or 0 and 1 [N, C].
    """
    found = decisions(logits, labels.ndim == 2)
    return (found == labels).all(1) if labels.ndim == 2 else found == labels


def summary(logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Metrics:
    """Compute metrics of logits against labels, in little memory beyond the logits.

    Args:
        logits: [N, C], N >= 1.
        labels: int64 [N].
        teacher: teacher logits [N, C] for the same images.

    Returns:
        metrics by name:
        - `accuracy` (a fraction) and `accuracy_ci95` (Wilson 1927, score interval);
        - `balanced_accuracy` (mean recall over the classes present);
        - `nll` (nats per image);
        - `brier` (squared distance of the probabilities from the one-hot label, summed over
          classes, mean over images, in [0, 2]; Brier 1950);
        - `ece` (expected calibration error, Guo et al. 2017, eq. 3) with its `reliability` bins;
        - `auroc` (one-vs-rest area under the ROC curve, mean over classes; None if a class is
          absent);
        - `confusion` (counts [C][C], true by predicted class; None for more than 100 classes, which
          get `worst_classes` and `confused_pairs` of `worst_of` instead);
        - `agreement`, the share of images with the teacher's prediction (None without a teacher);
        - for two classes `sensitivity` and `specificity`, the recall of the second and the first.

        Of labels [N, C], where an image may have several: see `_multilabel_summary`.
    """
    if labels.ndim == 2:
        return _multilabel_summary(logits, labels, teacher)
    chosen = logits.argmax(1)
    classes = logits.shape[1]
    right = int((chosen == labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(method="wilson")
    sureness = probability_metrics(logits, labels)
    few = classes <= CONFUSION
    agreement = None if teacher is None else float((chosen == teacher.argmax(1)).double().mean())
    found = Metrics(
        accuracy=right / len(labels),
        accuracy_ci95=(float(interval.low), float(interval.high)),
        balanced_accuracy=_balanced_accuracy(chosen, labels),
        nll=sureness.nll,
        brier=sureness.brier,
        ece=sureness.ece,
        agreement=agreement,
        auroc=auroc(logits, labels),
        confusion=confusions(labels, chosen, classes).tolist() if few else None,
        reliability=sureness.reliability,
    )
    more: dict[str, object] = {}
    if classes == 2:
        more["sensitivity"], more["specificity"] = _recalls(chosen, labels)
    if not few:
        more["worst_classes"], more["confused_pairs"] = worst_of(labels, chosen, classes)
    return found.model_copy(update=more)


def _multilabel_summary(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Metrics:
    """Compute the metrics of `summary` where an image may have several labels, or none.

    `accuracy` is the share of images with all labels right (subset accuracy), `agreement` that of
    images with the teacher's labels. `nll`, `brier`, `ece` and `reliability` are of single answers:
    each class of each image is a question. Besides there are `map` (mean over the classes of the
    average precision), `f1_macro` and `f1_micro`. `map`, `f1_macro` and `auroc` are means over the
    classes that have an image with the label and one without; None if there is none.

    Args:
        logits: [N, C].
        labels: 0 and 1, [N, C].
        teacher: teacher logits [N, C].
    """
    truth = labels.bool()
    scores = logits.double()
    chosen = decisions(logits, True)
    right = int(is_right(logits, labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(method="wilson")
    sureness = probability_metrics(*single_answers(logits, labels))
    both = with_both(labels)
    y = truth[:, both].int().numpy()
    s = scores[:, both].numpy()
    c = chosen[:, both].int().numpy()
    agreement = None if teacher is None else (chosen == decisions(teacher, True)).all(1)
    return Metrics(
        accuracy=right / len(labels),
        accuracy_ci95=(float(interval.low), float(interval.high)),
        nll=sureness.nll,
        brier=sureness.brier,
        ece=sureness.ece,
        agreement=None if agreement is None else float(agreement.double().mean()),
        auroc=float(roc_auc_score(y, s, average="macro")) if both else None,
        map=mean_average_precision(logits, labels),
        f1_macro=float(f1_score(y, c, average="macro", zero_division=0)) if both else None,
        f1_micro=float(f1_score(truth.int(), chosen.int(), average="micro", zero_division=0)),
        reliability=sureness.reliability,
    )


def single_answers(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Make a question of each label of each image: logits [N * C, 2], and answers int64 [N * C].

    Of one label an image nothing changes.

    Args:
        logits: [N, C].
        labels: int64 [N], or 0 and 1 [N, C].
    """
    if labels.ndim == 1:
        return logits, labels
    scores = logits.double()
    answers = torch.stack([torch.zeros_like(scores), scores], -1).flatten(0, 1)
    return answers, labels.flatten().long()


def probability_metrics(
    logits: Tensor, labels: Tensor, temperature: float = 1.0
) -> ProbabilityMetrics:
    """Compute the metrics of `summary` that a temperature changes: NLL, Brier score, ECE.

    Args:
        logits: [N, C].
        labels: int64 [N].
        temperature: > 0; divides the logits.
    """
    nll, brier, confidence = torch.empty(3, len(labels), dtype=torch.float64)
    for at, (block,) in row_blocks(logits):
        scaled = block / temperature
        p = scaled.softmax(1)
        nll[at] = F.cross_entropy(scaled, labels[at], reduction="none")
        brier[at] = (p - F.one_hot(labels[at], logits.shape[1])).square().sum(1)
        confidence[at] = p.amax(1)
    bins = reliability(confidence, logits.argmax(1) == labels)
    apart = [
        each.count * abs(each.confidence - each.accuracy)
        for each in bins
        if each.confidence is not None and each.accuracy is not None
    ]
    return ProbabilityMetrics(
        nll=float(nll.mean()),
        brier=float(brier.mean()),
        ece=sum(apart) / len(labels),
        reliability=bins,
    )


def row_blocks(*several: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Iterate over blocks of rows: a slice, and those rows of each tensor [N, C] in float64."""
    count, width = several[0].shape
    rows = max(1, BLOCK // width)
    for i in range(0, count, rows):
        at = slice(i, i + rows)
        yield at, [each[at].double() for each in several]


def confusions(labels: Tensor, chosen: Tensor, classes: int) -> NDArray[np.int64]:
    """Count images by true class (row) and predicted class (column); [classes, classes]."""
    counts = np.bincount((labels * classes + chosen).numpy(), minlength=classes * classes)
    return counts.reshape(classes, classes)


def worst_of(
    labels: Tensor, chosen: Tensor, classes: int
) -> tuple[list[ClassCount], list[ConfusedPair]]:
    """Summarise a confusion matrix of many classes.

    Args:
        labels, chosen: true and predicted class, int64 [N], from 0.
        classes: number of classes.

    Returns:
        up to 20 classes with the lowest recall, and up to 20 most frequent errors. Ties are sorted
        by label.
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
    return (
        [
            ClassCount(label=label, images=int(images[label]), right=int(right[label]))
            for label in worst
        ],
        [
            ConfusedPair(label=pair // classes, chosen=pair % classes, images=count)
            for pair, count in zip(pairs[most].tolist(), counts[most].tolist(), strict=True)
        ],
    )


def _balanced_accuracy(chosen: Tensor, labels: Tensor) -> float:
    total = torch.bincount(labels).double()
    right = torch.bincount(labels[chosen == labels], minlength=len(total)).double()
    return float((right / total)[total > 0].mean())


def reliability(confidence: Tensor, right: Tensor) -> list[ReliabilityBin]:
    """Compute the reliability diagram: accuracy by confidence.

    15 bins of equal width, (0, 1/15] to (14/15, 1] (Guo et al. 2017).

    Args:
        confidence: probability of the predicted class, [N].
        right: whether the prediction is correct, bool [N].

    Returns:
        per bin the number of images, and the mean confidence and accuracy (fractions; None if
        empty).
    """
    where = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    count = torch.bincount(where, minlength=BINS)
    sums = (torch.bincount(where, each, BINS) for each in (confidence, right.double()))
    means = torch.stack([each / count for each in sums], 1).tolist()
    return [
        ReliabilityBin(count=int(n), confidence=sure if n else None, accuracy=share if n else None)
        for n, (sure, share) in zip(count, means, strict=True)
    ]


def auroc(logits: Tensor, labels: Tensor) -> float | None:
    """Compute the one-vs-rest area under the ROC curve, class mean; None if a class is absent.

    With two classes there is one curve. The area is the chance that an image of the class ranks
    above another image, ties counting half (Hanley & McNeil 1982). It follows from the ranks of the
    class's own images, so a class takes one sort.

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
    width = max(1, BLOCK // n)
    areas = []
    for start, odds in _column_blocks(logits, width):
        ranked = np.sort(odds, axis=1)
        for row, column in enumerate(odds):
            scores = column[own[start + row].numpy()]
            below = np.searchsorted(ranked[row], scores, "left").astype(np.float64)
            up_to = np.searchsorted(ranked[row], scores, "right")
            # Their mean ranks among all images, minus those among themselves, count the pairs.
            pairs = (below + up_to + 1).sum() / 2 - len(scores) * (len(scores) + 1) / 2
            areas.append(pairs / (len(scores) * (n - len(scores))))
    return float(np.mean(areas))


def _column_blocks(logits: Tensor, width: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Iterate over blocks of classes: the first class, and the log odds [classes, N].

    Probabilities near 0 and 1 have ties; log odds do not. For the class with the highest logit they
    come from the other logits, because 1 - p has no digits left.
    """
    n, classes = logits.shape
    chosen, top, total, others = logits.argmax(1), *torch.empty(3, n, dtype=torch.float64)
    for at, (block,) in row_blocks(logits):
        top[at] = block.amax(1)
        total[at] = (block - top[at, None]).exp().sum(1).log()
        others[at] = block.scatter(1, chosen[at, None], -torch.inf).logsumexp(1)
    for start in range(0, classes, width):
        log_p = logits[:, start : start + width].T.double() - top - total
        odds = log_p - torch.log1p(-log_p.exp())
        inside = (chosen >= start) & (chosen < start + width)
        odds[chosen[inside] - start, inside.nonzero()[:, 0]] = (top - others)[inside]
        yield start, odds.numpy()


def _recalls(chosen: Tensor, labels: Tensor) -> tuple[float | None, float | None]:
    """Of two classes: the recall of the second one, and that of the first."""
    found = (labels.numpy(), chosen.numpy())
    present = set(labels.tolist())
    sensitivity, specificity = (
        float(recall_score(*found, pos_label=one)) if one in present else None for one in (1, 0)
    )
    return sensitivity, specificity


class PairedGain(NamedTuple):
    """What one net gains over another on the same images.

    Attributes:
        gain: in accuracy, a fraction.
        gain_ci95: percentile bootstrap over images; of few images, or where one net is right on all
            on which they differ, that of Agresti and Min (2005).
        p_value: McNemar's exact two-sided test (1947) on the images that only one gets right.
    """

    gain: float
    gain_ci95: Interval
    p_value: float


def paired_comparison(
    student: Tensor, baseline: Tensor, labels: Tensor, seed: int = 0
) -> PairedGain:
    """Compare student and baseline on the same test images.

    The interval and p cover the choice of test images for these two nets. Variation over seeds
    needs more seeds.

    Args:
        student, baseline: logits [N, C].
        labels: int64 [N].
    """
    s = is_right(student, labels).numpy().astype(np.float64)
    b = is_right(baseline, labels).numpy().astype(np.float64)
    difference = s - b
    lost, same, won = (int((difference == value).sum()) for value in (-1, 0, 1))
    interval = _paired_interval(lost, same, won, seed)
    p_value = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return PairedGain(float(difference.mean()), interval, float(p_value))


def _paired_interval(lost: int, same: int, won: int, seed: int) -> Interval:
    """Return the interval (95 %) of a gain, from the images by which net alone is right.

    The bootstrap has no width where all images are of one kind, and too little of few images.
    Agresti and Min (2005, Statistics in Medicine 24) add half an image to each cell of the two by
    two table and take the normal interval.
    """
    images = lost + same + won
    if images >= FEW_IMAGES and images not in (lost, same, won):
        # Only these three counts matter, so the bootstrap draws them from a multinomial.
        shares = np.array([lost, same, won]) / images
        draws = np.random.default_rng(seed).multinomial(images, shares, BOOTSTRAP)
        low, high = np.quantile((draws[:, 2] - draws[:, 0]) / images, [0.025, 0.975])
        return float(low), float(high)
    middle = (won - lost) / (images + 2)
    half = 1.959964 * math.sqrt((won + lost + 1) / (images + 2) - middle**2)
    half /= math.sqrt(images + 2)
    return max(middle - half, -1.0), min(middle + half, 1.0)
