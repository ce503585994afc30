"""What `teacher.data` may say: a folder, other values for the run's data, or another source."""

from collections.abc import Mapping
from typing import Any

FOLDER = "kd.data.image_folder.ImageFolder"

# What makes the transfer set, or names parts of one folder; a teacher's data does not take it over.
NOT_TAKEN_OVER = ("labels", "omit", "val_labels", "unlabeled", "limit", "parts", "teacher_data")


def teacher_source(data: Mapping[str, Any], asked: str | Mapping[str, Any]) -> dict[str, Any]:
    """Build the node of the source that the teacher trains on.

    Args:
        data: the run's own node.
        asked: a folder of images; keys of the run's node that are to be otherwise; or a whole node.
    """
    if not isinstance(asked, str) and "_target_" in asked:
        return dict(asked)
    own = {name: value for name, value in data.items() if name not in NOT_TAKEN_OVER}
    if not isinstance(asked, str):
        return {**own, **asked}
    target = own["_target_"] if "image_size" in own else FOLDER  # a folder stays what it is
    return {**own, "_target_": target, "root": asked}
