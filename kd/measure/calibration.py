"""Temperature scaling: divide logits by one number to calibrate their probabilities."""

import math

import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from kd.measure.metrics import row_blocks

BOUNDS = (0.01, 100.0)


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Find the temperature T for which logits / T has the lowest negative log-likelihood.

    Guo et al. 2017, section 4.2.

    Args:
        logits: [N, C], of validation images that were used neither for training nor for testing.
        labels: int64 [N].

    Returns:
        T > 0; None if there is no minimum between 0.01 and 100. This is so where all images are
        right (smaller T is always better) or accuracy is no better than chance.
    """

    def loss(log_t: float) -> float:
        total = 0.0
        for at, (block,) in row_blocks(logits):
            scaled = block / math.exp(log_t)
            total += float(F.cross_entropy(scaled, labels[at], reduction="sum"))
        return total / len(labels)

    # The loss is convex in 1/T, so it has one minimum in log T and a bounded search finds it.
    bounds = (math.log(BOUNDS[0]), math.log(BOUNDS[1]))
    found = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)
    inside = min(found - bounds[0], bounds[1] - found) > 1e-3
    # From some T downwards the loss is then 0 in float64
    all_right = bool((logits.argmax(1) == labels).all())
    return math.exp(found) if inside and not all_right else None
