"""The report's part about classes that the student was never shown."""

from collections.abc import Mapping

from torch import Tensor

from kd.data.base import DataModule
from kd.data.transfer import omitted_labels
from kd.files.report_file import OmittedErrors, Report
from kd.files.store import StageResult
from kd.measure.omission import omitted_errors
from kd.stages.chain import Role
from kd.stages.result import logits_of


def omitted_classes(
    results: Mapping[Role, StageResult], logits: Mapping[Role, Tensor], data: DataModule
) -> dict[str, OmittedErrors] | None:
    """Count the errors on omitted classes of each net that was not shown them, by role.

    Args:
        logits: of each role, for the test images.

    Returns:
        None where all classes were shown, or without a validation part.
    """
    if not data.omit or not data.split.val:  # the bias is chosen on validation
        return None
    omitted = omitted_labels(data.omit, data.classes)
    val = data.split.val
    test = data.split.test
    return {
        role: omitted_errors(
            (logits_of(results[role], data, val), val.labels), (logits[role], test.labels), omitted
        )
        for role in results
        if role != "teacher"
    }


def omitted_lines(report: Report) -> list[str]:
    """Write a sentence for each net that was not shown some classes."""
    names = ", ".join(report.data.omitted)
    return [_line(role, found, names) for role, found in (report.omitted or {}).items()]


def _line(role: str, found: OmittedErrors, names: str) -> str:
    before = found.errors
    after = found.errors_corrected
    images = found.images
    return (
        f"Never shown {names}, the {role} makes {before.all:,} errors on {images.all:,} test "
        f"images, {before.omitted:,} of them on the {images.omitted:,} of {names}. "
    ) + (
        f"With {found.bias:+.1f} on the bias of {names}, the best on validation: "
        f"{after.all:,} errors, {after.omitted:,} of them on those."
        if found.bias
        else f"No other bias of {names} does better on validation."
    )
