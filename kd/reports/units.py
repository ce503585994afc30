"""Formatting of numbers for people."""

from kd.files.report_file import DataReport, Report
from kd.log import short


def count_text(count: float) -> str:
    """Format a count that is 0 where it could not be made, as of an ONNX file's MACs."""
    return short(count) if count else "?"


def training_images(data: DataReport) -> str:
    """Describe a run's training images and the student's labels, from its report's `data`."""
    labels = data.train if data.labels is None else data.labels
    text = f"{data.train} training images"
    text += f" and {data.unlabeled} without labels" if data.unlabeled else ""
    limits = []
    if labels < data.train:
        limits.append(f"have labels for {labels} of them")
    if data.omitted:
        limits.append(f"never see those of {', '.join(data.omitted)}")
    if limits:
        text += f"; the student and the baseline {' and '.join(limits)}"
    if other := data.teacher:
        text += f"; the teacher learned from {other.train} training images of {other.name}"
        text += f" and was chosen on {other.val} validation images of it" if other.val else ""
    return text


def selection_data(report: Report) -> str:
    """Describe what selected the weights of a run's nets."""
    data = report.data
    labels = data.val if data.val_labels is None else data.val_labels
    if not data.val:
        return (
            "Nothing was selected: there is no validation part, and all nets keep the weights of "
            "their last epoch."
        )
    teacher = report.config.get("teacher")
    of_teacher = teacher.get("keep") if isinstance(teacher, dict) else None
    if report.config.get("keep") == of_teacher == "last":
        return "Nothing was selected: all nets keep the weights of their last epoch."
    if labels == 0:
        return (
            "The student and the baseline keep the weights of their last epoch, which no "
            "validation label chose."
        )
    few = (
        f" (by {labels} of its images for the student and the baseline)"
        if labels < data.val
        else ""
    )
    return f"Weights were chosen on validation{few}."
