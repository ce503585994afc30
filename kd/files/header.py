"""Location of a teacher's weights and the file's header; works without torch."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kd.errors import UserError, first_of, nearest_beside
from kd.files.allowlist import check_allowlist

STUDENT = "student.safetensors"
HUB_CONFIG, HUB_WEIGHTS = "config.json", "model.safetensors"  # of a Hugging Face folder
SCHEMA = 1
Count = Annotated[int, Field(gt=0, le=2**20)]  # channels, side of an image, classes


def weights_file(path: str | Path, where: str) -> Path:
    """Return the weights file: the path itself, or that in a run's or a Hugging Face folder.

    Args:
        where: config key of the path, for messages.

    Raises:
        UserError: the file is missing, or the folder is neither.
    """
    found = Path(path).expanduser()
    if is_hub_folder(found) and not (found / STUDENT).is_file():
        found /= HUB_WEIGHTS
        if (beside := found.with_name(f"{HUB_WEIGHTS}.index.json")).is_file():
            raise UserError(f"{where}: {beside} names several files; accepted is one {HUB_WEIGHTS}")
    if found.is_dir():
        if not (found / STUDENT).is_file():
            raise UserError(
                f"{where}: the folder {found.absolute()} has no {STUDENT}, so it is no run's; "
                "name a file"
            )
        found /= STUDENT
    if not found.is_file():
        raise UserError(f"{where}: there is no file {found.absolute()}{nearest_beside(found)}")
    return found


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder looks like a model of Hugging Face's `transformers`."""
    return "model_type" in _json(folder / HUB_CONFIG)


def _json(file: Path) -> dict[str, object]:
    """Read a JSON object; empty if the file is missing or holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _hub_net(folder: Path) -> dict[str, object]:
    """Return the node of the net in a Hugging Face folder."""
    config = _json(folder / HUB_CONFIG)
    shown = _json(folder / "preprocessor_config.json")
    known = shown.get("do_normalize", True) and "image_mean" in shown and "image_std" in shown
    return {
        "_target_": "kd.nets.huggingface.huggingface_net",
        "name": str(config.pop("model_type")),
        "config": {
            key: value for key, value in config.items() if key not in ("id2label", "label2id")
        },
        "statistics": {"mean": shown["image_mean"], "std": shown["image_std"]} if known else {},
    }


class Header(BaseModel):
    """Header of a run's student; everything except the net is optional."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    schema_: Annotated[int, Field(alias="schema")] = SCHEMA
    net: dict[str, object]
    shape: tuple[Count, Count | tuple[Count, Count], Count] | None = None
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None


def header_of(path: Path) -> dict[str, Any] | None:
    """Read the header of a run's student: net, shape, classes, mean and std; None for other files.

    A damaged file counts as another file here; reading its tensors reports the damage.

    Raises:
        UserError: the header is invalid, or from a later kd.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                return None
            text = json.loads(file.read(size))["__metadata__"]["kd"]
            found = json.loads(text)
            schema = dict(found).get("schema", SCHEMA)
            _ = found["net"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(
            f"{path} was written by a later kd (schema {schema}; this one reads {SCHEMA})"
        )
    try:
        Header.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path}: its header is damaged: {first_of(error)}") from None
    # Left to `kd.files.tensors`
    return {name: value for name, value in found.items() if name != "sha256"}


def net_of(path: str | Path, where: str) -> dict[str, object]:
    """Return the net node in a file's header, or that of a Hugging Face folder.

    Only the project's own nets and the net libraries are allowed.

    Args:
        where: config prefix of `path` and `net`, for messages.

    Raises:
        UserError: it names no net, or one of another package.
    """
    file = weights_file(path, f"{where}.path")
    header = header_of(file)
    if header is None and is_hub_folder(file.parent):
        return _hub_net(file.parent)
    if header is None:
        raise UserError(
            f"{where}.net: {file} does not name its net, as a run's student does; choose it: "
            f"{where}=resnet18 {where}.path={file}"
        )
    node: dict[str, object] = header["net"]
    check_allowlist(node, "net", f"{where}.net: {file}", remedy=f"give {where}.net yourself")
    return node
