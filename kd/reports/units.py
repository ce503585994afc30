"""Formatting of numbers for people."""

from collections.abc import Mapping
from typing import Any


def short(count: float) -> str:
    """Format three significant digits with a decimal prefix: 93.9 k, 11.2 M."""
    power = 0
    while count >= 999.5 and power < 3:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {' kMG'[power]}".rstrip()


def training_images(data: Mapping[str, Any]) -> str:
    """Describe a run's number of training images, and of the student's labels, from its report's
    `data`.
    """
    labels, more = data.get("labels", data["train"]), data.get("unlabeled")
    text = f"{data['train']} training images"
    if labels < data["train"]:
        text += f" ({labels} of them with a label for the student and the baseline)"
    if data.get("omitted"):
        text += f", of which those of {', '.join(data['omitted'])} were never shown to the two"
    text += f" and {more} without labels" if more else ""
    if other := data.get("teacher"):
        text += (
            f"; the teacher learned from {other['train']} training images of {other['name']} and "
            f"was chosen on {other['val']} validation images of it"
        )
    return text


def selection_data(data: Mapping[str, Any]) -> str:
    """Describe what selected the weights of a run's nets, from its report's `data`."""
    labels = data.get("val_labels", data["val"])
    if labels == 0:
        return (
            "The student and the baseline keep the weights of their last epoch, which no "
            "validation label chose."
        )
    few = (
        f" (by {labels} of its images for the student and the baseline)"
        if labels < data["val"]
        else ""
    )
    return f"Weights were chosen on validation{few}."
