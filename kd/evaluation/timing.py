"""Timing several things fairly.

Warm, and in turns, so that whatever else the machine does hits all of them alike.
"""

import random
import time
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from kd.evaluation.backends import Pass
from kd.log import waiting

K = TypeVar("K")

ROUNDS = 20
LEAST = 3  # passes that are timed in a round, however long they take
# seconds of passes before each turn that do not count: other nets have been in the caches since
WARM = 0.005


def times(passes: Mapping[K, Pass], seconds: float) -> dict[K, list[float]]:
    """Milliseconds of each timed pass.

    Args:
        seconds: about how long to time each; spread over 20 rounds, in each of which all have their
            turn, in an order that is drawn anew.
    """
    found: dict[K, list[float]] = {key: [] for key in passes}
    order, draw = list(passes), random.Random(0)
    for _ in waiting(range(ROUNDS), "measuring"):
        draw.shuffle(order)
        for key in order:
            _until(passes[key], WARM, 1)
            found[key] += _until(passes[key], seconds / ROUNDS, LEAST)
    return found


def _until(run: Pass, seconds: float, least: int) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        found.append(1000 * (time.perf_counter() - start))
    return found


def median_and_p95(milliseconds: list[float]) -> tuple[float, float]:
    """The median and the 95th percentile."""
    return float(np.median(milliseconds)), float(np.quantile(milliseconds, 0.95, method="lower"))
