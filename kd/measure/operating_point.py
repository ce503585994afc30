"""Operating points: from which score on an image counts as positive, chosen on one part and judged
on another.
"""

from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor


def by_sensitivity(scores: Tensor, positive: Tensor, target: float) -> float:
    """The highest threshold that still finds this share of the positives.

    The fewest false alarms at that sensitivity.

    Args:
        scores: float [N]; an image counts as positive from the threshold on.
        positive: bool [N], at least one of them true.
        target: the share to find, in (0, 1].
    """
    ordered = scores[positive].sort(descending=True).values
    # Less a hair, so that 0.95 of 20 is 19, whatever the last bit of the product.
    needed = max(1, int(torch.tensor(target * len(ordered) - 1e-9, dtype=torch.float64).ceil()))
    return float(ordered[needed - 1])


def by_cost(scores: Tensor, positive: Tensor, miss_cost: float) -> float:
    """The threshold at which `miss_cost * misses + false alarms` is lowest.

    Of several the lowest, which misses least.

    Args:
        scores, positive: as in `by_sensitivity`; the threshold is one of the scores, or infinity to
            call none positive.
        miss_cost: what a miss costs, in false alarms; > 0.
    """
    ordered, order = scores.sort()
    truth = positive[order].double()
    missed = torch.cat(
        [truth.new_zeros(1), truth.cumsum(0)]
    )  # below each score, and below infinity
    alarms = (1 - truth).sum() - torch.cat([truth.new_zeros(1), (1 - truth).cumsum(0)])
    first = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    possible = torch.cat([torch.ones(1, dtype=torch.bool), first])  # equal scores go together
    cost = torch.where(possible, miss_cost * missed + alarms, torch.inf)
    best = int(cost.argmin())
    return float(ordered[best]) if best < len(ordered) else float("inf")


def at_threshold(scores: Tensor, positive: Tensor, threshold: float) -> dict[str, Any]:
    """What a threshold gives.

    Returns:
        the counts `found`, `missed`, `false_alarms` and `cleared`; `sensitivity`, the share of the
        positives that is found, `specificity`, the share of the others that is cleared,
        `precision`, the share of the alarms that is right, and `negative_precision`, the share of
        the cleared that is right; each a fraction with its 95 % interval under `..._ci95` (Wilson
        1927), None where nothing is counted.
    """
    alarm = scores >= threshold
    found, missed = int((alarm & positive).sum()), int((~alarm & positive).sum())
    false, cleared = int((alarm & ~positive).sum()), int((~alarm & ~positive).sum())
    shares = {
        "sensitivity": (found, found + missed),
        "specificity": (cleared, cleared + false),
        "precision": (found, found + false),
        "negative_precision": (cleared, cleared + missed),
    }
    counts = {"found": found, "missed": missed, "false_alarms": false, "cleared": cleared}
    return {**counts, **{k: v for name, share in shares.items() for k, v in _share(name, *share)}}


def _share(name: str, count: int, total: int) -> list[tuple[str, Any]]:
    if not total:
        return [(name, None), (f"{name}_ci95", None)]
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return [
        (name, count / total),
        (f"{name}_ci95", [float(interval.low), float(interval.high)]),
    ]


def positive_scores(logits: Tensor, label: int) -> Tensor:
    """How sure a net is of a class against all others: the log odds, float64 [N].

    0 is a probability of one half.

    Args:
        logits: [N, C], C >= 2.
    """
    logits = logits.double()
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], 1)
    return logits[:, label] - others.logsumexp(1)
