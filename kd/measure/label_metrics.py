"""Metrics where an image may have several labels: mAP and F1 with intervals."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor

from kd.files.report_file import Interval

DRAWS = 1000  # of the bootstrap
BLOCK = 2**21  # float64 numbers at a time: 16 MB

Floats = NDArray[np.float64]


def with_both(labels: Tensor) -> list[int]:
    """Return the classes that have an image with the label and one without.

    Args:
        labels: 0 and 1, [N, C].
    """
    truth = labels > 0
    return (truth.any(0) & ~truth.all(0)).nonzero()[:, 0].tolist()


def average_precisions(logits: Tensor, labels: Tensor) -> list[float | None]:
    """Compute each class's average precision; None without images of both kinds.

    It is the mean of the precision at each image with the label, from the highest logit down.

    Args:
        logits: [N, C].
        labels: 0 and 1, [N, C].
    """
    both = with_both(labels)
    scores = logits.double().numpy()
    truth = (labels > 0).int().numpy()
    return [
        float(average_precision_score(truth[:, c], scores[:, c])) if c in both else None
        for c in range(labels.shape[1])
    ]


def mean_average_precision(logits: Tensor, labels: Tensor) -> float | None:
    """Compute the mean of `average_precisions`, mAP; None if no class has one.

    Args:
        logits: [N, C].
        labels: 0 and 1, [N, C].
    """
    known = [each for each in average_precisions(logits, labels) if each is not None]
    return float(np.mean(known)) if known else None


class BootstrapMetrics(NamedTuple):
    """Metrics of bootstrap samples of the images, [DRAWS] each; NaN of a sample without any."""

    map: Floats
    f1_macro: Floats
    f1_micro: Floats


def resample(logits: Tensor, decided: Tensor, labels: Tensor, seed: int = 0) -> BootstrapMetrics:
    """Compute mAP and F1 on samples of N images with replacement.

    Two nets on the same images have the same samples, so their differences are paired.

    Args:
        logits: [N, C].
        decided: which labels are given, bool [N, C].
        labels: 0 and 1, [N, C].
    """
    count = len(labels)
    both = with_both(labels)
    truth = (labels > 0).numpy()
    scores = logits.double().numpy()
    said = decided.numpy()
    draw = np.random.default_rng(seed)
    rows = max(1, BLOCK // count)
    found = []
    for start in range(0, DRAWS, rows):
        size = min(rows, DRAWS - start)
        weights = draw.multinomial(count, np.full(count, 1 / count), size).astype(np.float64)
        areas = [_weighted_precision(scores[:, c], truth[:, c], weights) for c in both]
        right, given, true = (weights @ each for each in (truth & said, said, truth))
        macro = _f1(right, given, true)[:, both]
        micro = _f1(right.sum(1), given.sum(1), true.sum(1))
        empty = np.full(size, np.nan)
        means = [_mean(np.stack(areas)), macro.mean(1)] if both else [empty, empty]
        found.append([*means, micro])
    return BootstrapMetrics(*(np.concatenate(each) for each in zip(*found, strict=True)))


def _weighted_precision(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Compute the average precision where image i counts weights[r, i] times, [R].

    Args:
        scores: [N].
        truth: [N].
        weights: [R, N].
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    counts = weights[:, order]
    # Images of equal scores stand at the place of the last of them
    last = np.searchsorted(-ranked, -ranked, side="right") - 1
    hits = counts * truth[order]
    with np.errstate(invalid="ignore"):
        precision = (hits.cumsum(1) / counts.cumsum(1))[:, last]
        return np.asarray((hits * np.nan_to_num(precision)).sum(1) / hits.sum(1))


def _f1(right: Floats, given: Floats, true: Floats) -> Floats:
    """Compute F1 from counts; 0 where no label is given or true."""
    return np.asarray(2 * right / np.maximum(given + true, 1))


def _mean(areas: Floats) -> Floats:
    """Return the mean over the classes [C, R] that a sample has."""
    known = ~np.isnan(areas)
    total = np.nan_to_num(areas).sum(0)
    return np.asarray(np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan))


def interval(values: Floats) -> Interval | None:
    """Return the middle 95 % of bootstrap values; None if there are none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
