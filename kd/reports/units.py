"""Numbers for people."""

from collections.abc import Mapping
from typing import Any


def short(count: float) -> str:
    """Three significant digits and a decimal prefix: 93.9 k, 11.2 M."""
    power = 0
    while count >= 999.5 and power < 3:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {' kMG'[power]}".rstrip()


def training_images(data: Mapping[str, Any]) -> str:
    """How many images a run trained on, and how many had a label for the student.

    From its report's `data`.
    """
    labels, more = data.get("labels", data["train"]), data.get("unlabeled")
    text = f"{data['train']} training images"
    if labels < data["train"]:
        text += f" ({labels} of them with a label for the student and the baseline)"
    return text + (f" and {more} without labels" if more else "")
