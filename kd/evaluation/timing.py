"""Fair timing of several things: warm, and in turns, so that other load affects all alike."""

import random
import time
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from kd.evaluation.backends import Pass
from kd.log import waiting

K = TypeVar("K")

ROUNDS = 20
LEAST = 3  # minimum of timed passes per round
# seconds of untimed passes before each turn: other nets have used the caches since
WARM = 0.005


def times(passes: Mapping[K, Pass], seconds: float) -> dict[K, list[float]]:
    """Time each pass, in milliseconds.

    Args:
        seconds: target time per pass, spread over 20 rounds; each round runs all passes in a new
            random order.
    """
    found: dict[K, list[float]] = {key: [] for key in passes}
    order = list(passes)
    draw = random.Random(0)
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
    """Return the median and the 95th percentile."""
    return float(np.median(milliseconds)), float(np.quantile(milliseconds, 0.95, method="lower"))
