"""A schedule as a user might write it."""


def rise(progress: float, low: float) -> float:
    """Rise from `low` by one."""
    return low + progress
