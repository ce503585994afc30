"""Operating points: the score threshold for a positive, chosen on one part, tested on another."""

import torch
from scipy.stats import binomtest
from torch import Tensor

from kd.files.evaluation_file import ThresholdMetrics
from kd.files.report_file import Interval


def by_sensitivity(scores: Tensor, positive: Tensor, target: float) -> float:
    """Find the highest threshold of this sensitivity, which has the fewest false alarms.

    Args:
        scores: float [N]; an image is positive if its score reaches the threshold.
        positive: bool [N], at least one true.
        target: sensitivity to reach, in (0, 1].
    """
    ordered = scores[positive].sort(descending=True).values
    # The small offset makes 0.95 of 20 be 19, whatever the rounding of the product.
    needed = max(1, int(torch.tensor(target * len(ordered) - 1e-9, dtype=torch.float64).ceil()))
    return float(ordered[needed - 1])


def by_cost(scores: Tensor, positive: Tensor, miss_cost: float) -> float:
    """Find the threshold with the lowest `miss_cost * misses + false alarms`.

    The lowest of several, which misses least.

    Args:
        scores: float [N].
        positive: bool [N], at least one true.
        miss_cost: cost of a miss, in false alarms; > 0.

    Returns:
        one of the scores, or infinity to call nothing positive.
    """
    ordered, order = scores.sort()
    truth = positive[order].double()
    # Below each score, and below infinity
    missed = torch.cat([truth.new_zeros(1), truth.cumsum(0)])
    alarms = (1 - truth).sum() - torch.cat([truth.new_zeros(1), (1 - truth).cumsum(0)])
    first = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    possible = torch.cat([torch.ones(1, dtype=torch.bool), first])  # equal scores stay together
    cost = torch.where(possible, miss_cost * missed + alarms, torch.inf)
    best = int(cost.argmin())
    return float(ordered[best]) if best < len(ordered) else float("inf")


def by_f1(scores: Tensor, positive: Tensor) -> float:
    """Find the threshold with the highest F1; of several the highest.

    Args:
        scores: float [N].
        positive: bool [N], at least one true.

    Returns:
        one of the scores.
    """
    ordered, order = scores.sort(descending=True)
    found = positive[order].double().cumsum(0)
    given = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    f1 = 2 * found / (given + positive.sum())
    last = torch.ones_like(positive)  # equal scores stay together
    last[:-1] = ordered[1:] != ordered[:-1]
    return float(ordered[int(torch.where(last, f1, -1.0).argmax())])


def at_threshold(scores: Tensor, positive: Tensor, threshold: float) -> ThresholdMetrics:
    """Evaluate a threshold.

    Args:
        scores: float [N].
        positive: bool [N].
        threshold: an image is positive if its score reaches it.
    """
    alarm = scores >= threshold
    found = int((alarm & positive).sum())
    missed = int((~alarm & positive).sum())
    false = int((alarm & ~positive).sum())
    cleared = int((~alarm & ~positive).sum())
    counts = {"found": found, "missed": missed, "false_alarms": false, "cleared": cleared}
    shares = {
        **_share("sensitivity", found, missed),
        **_share("specificity", cleared, false),
        **_share("precision", found, false),
        **_share("negative_precision", cleared, missed),
    }
    return ThresholdMetrics.model_validate({**counts, **shares})


def _share(name: str, count: int, others: int) -> dict[str, float | Interval | None]:
    """Return a fraction with its 95 % interval (Wilson 1927), under their names."""
    total = count + others
    if not total:
        return {name: None, f"{name}_ci95": None}
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return {name: count / total, f"{name}_ci95": (float(interval.low), float(interval.high))}


def has_class(labels: Tensor, label: int) -> Tensor:
    """Return which images are of a class, bool [N].

    Args:
        labels: int64 [N], or 0 and 1 [N, C].
        label: index of the class.
    """
    return labels[:, label] > 0 if labels.ndim == 2 else labels == label


def positive_scores(logits: Tensor, label: int, several: bool = False) -> Tensor:
    """Compute the log odds of a class against all others, float64 [N]; 0 is probability 1/2.

    Args:
        logits: [N, C], C >= 2.
        label: index of the class.
        several: whether an image may have several labels: the logit is then the log odds.
    """
    logits = logits.double()
    if several:
        return logits[:, label]
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], 1)
    return logits[:, label] - others.logsumexp(1)
