"""Existence of the files and folders that are typed, checked before torch is imported."""

from collections.abc import Collection, Mapping
from pathlib import Path

from kd.errors import UserError, nearest_beside
from kd.files.header import weights_file

# Sources that need their folder; others download into it, or have none.
IN_FOLDERS = ("chest_xray", "huggingface", "image_folder", "imagenet", "parquet", "webdataset")
PATTERN = frozenset("*?[{")


def check_paths(
    data: Mapping[str, object], starts: Mapping[str, str | None], typed: Collection[str]
) -> None:
    """Refuse typed paths where nothing is.

    Args:
        data: the config's node of that name.
        starts: `path` of the teacher and the student.
        typed: keys on the command line.

    Raises:
        UserError: names the key, the path and its nearest neighbour.
    """
    source = str(data.get("_target_")).removeprefix("kd.data.").partition(".")[0]
    if "data.root" in typed and source in IN_FOLDERS:
        kind = "folder" if source == "image_folder" else "file or folder"
        _check_there("data.root", data.get("root"), kind)
    for key in ("unlabeled", "label_file"):
        if f"data.{key}" in typed:
            _check_there(f"data.{key}", data.get(key), "file or folder", data.get("root"))
    for role, path in starts.items():
        if f"{role}.path" in typed and path is not None:
            weights_file(path, f"{role}.path")


def _check_there(key: str, found: object, kind: str, root: object = None) -> None:
    """Refuse a path that is not there; patterns and addresses are for the source to read.

    Args:
        kind: what is needed.
        root: folder in which the path may be as well.
    """
    if not isinstance(found, str) or PATTERN & set(found) or "://" in found:
        return
    path = Path(found).expanduser()
    if path.exists() or (isinstance(root, str) and (Path(root).expanduser() / path).exists()):
        return
    raise UserError(f"{key}: no {kind} {path.absolute()}{nearest_beside(path)}")
