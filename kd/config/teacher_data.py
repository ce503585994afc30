"""Values of `teacher.data`: a folder, changed keys of the run's data, or another source."""

from collections.abc import Mapping

FOLDER = "kd.data.image_folder.ImageFolder"

# Keys of the transfer set, or of one folder; a teacher's data does not inherit them.
NOT_TAKEN_OVER = (
    "labels",
    "omit",
    "val_labels",
    "unlabeled",
    "limit",
    "imbalance",
    "parts",
    "teacher_data",
    "teacher_reading",
)


def teacher_source(
    data: Mapping[str, object], asked: str | Mapping[str, object]
) -> dict[str, object]:
    """Build the config node of the teacher's training data.

    Args:
        data: node of the run's data.
        asked: a folder of images, changed keys of the run's node, or a whole node.
    """
    if not isinstance(asked, str) and "_target_" in asked:
        return dict(asked)
    own = {name: value for name, value in data.items() if name not in NOT_TAKEN_OVER}
    if not isinstance(asked, str):
        return {**own, **asked}
    # Folders of images keep their class
    target = own["_target_"] if "image_size" in own else FOLDER
    return {**own, "_target_": target, "root": asked}
