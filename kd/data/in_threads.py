"""Calls in threads, one a core."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch.utils.data import get_worker_info

LONGEST = 256  # calls that a thread takes at once

T = TypeVar("T")


def threads() -> int:
    """Return the number of decoding threads: decoders release the GIL, so one per core.

    Processes that load ahead share the cores.
    """
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    ahead = get_worker_info()
    return max(1, cores // (ahead.num_workers if ahead else 1))


def in_threads(one: Callable[[int], T], count: int) -> Iterator[T]:
    """Call a function of 0 to `count` - 1, and yield its results in order.

    A thread takes several numbers at once. Handing them over one by one costs time, and more
    memory for each than what is known of an image.
    """
    if count < 2 or threads() < 2:
        yield from map(one, range(count))
        return
    size = min(LONGEST, -(-count // (2 * threads())))

    def some(start: int) -> list[T]:
        return [one(number) for number in range(start, min(start + size, count))]

    pool = ThreadPoolExecutor(threads())
    try:
        for found in pool.map(some, range(0, count, size)):
            yield from found
    finally:
        pool.shutdown(cancel_futures=True)
