"""A schedule as a user might write it."""


def rise(progress: float, low: float) -> float:
    """From `low` to one more."""
    return low + progress
