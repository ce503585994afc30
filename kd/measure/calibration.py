"""Temperature scaling: one number by which a net's logits are divided so that its probabilities can
be believed.
"""

import math

import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from kd.measure.metrics import row_blocks

BOUNDS = (0.01, 100.0)


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature T that gives logits / T the lowest negative log-likelihood (Guo et al. 2017,
    section 4.2).

    Args:
        logits: [N, C], of validation images: neither those it was trained on nor those it is judged
            by.
        labels: [N].

    Returns:
        T > 0; None where there is no lowest one between 0.01 and 100, as where the net is right
        about all images (the smaller T, the better) or no better than chance.
    """

    def loss(log_t: float) -> float:
        total = 0.0
        for at, block in row_blocks(logits):
            scaled = block / math.exp(log_t)
            total += float(F.cross_entropy(scaled, labels[at], reduction="sum"))
        return total / len(labels)

    # In 1/T the loss is convex, so in log T it falls and then rises: one minimum, which a search
    # between bounds finds.
    bounds = (math.log(BOUNDS[0]), math.log(BOUNDS[1]))
    found = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)
    inside = min(found - bounds[0], bounds[1] - found) > 1e-3
    all_right = bool(
        (logits.argmax(1) == labels).all()
    )  # the loss is then 0 in float64 from some T on downwards
    return math.exp(found) if inside and not all_right else None
