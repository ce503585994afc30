"""Location of a teacher's weights and the file's header; works without torch."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kd.errors import UserError, first_of
from kd.files.allowlist import check_allowlist

STUDENT = "student.safetensors"
SCHEMA = 1
Count = Annotated[int, Field(gt=0, le=2**20)]  # channels, side of an image, classes


def weights_file(path: str | Path, where: str) -> Path:
    """Return the weights file: the path itself, or the student's weights in a run folder.

    Args:
        where: config key of the path, for messages.

    Raises:
        UserError: the file is missing, or the folder is no run folder.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        if not (found / STUDENT).is_file():
            raise UserError(
                f"{where}: the folder {found.absolute()} has no {STUDENT}, so it is no run's; "
                "name a file"
            )
        found /= STUDENT
    if not found.is_file():
        raise UserError(f"{where}: there is no file {found.absolute()}")
    return found


class Header(BaseModel):
    """Header of a run's student; everything except the net is optional."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    schema_: Annotated[int, Field(alias="schema")] = SCHEMA
    net: dict[str, Any]
    shape: tuple[Count, Count, Count] | None = None
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


def net_of(path: str | Path, where: str) -> dict[str, Any]:
    """Return the net node in a file's header; only the project's own nets are allowed.

    Args:
        where: config prefix of `path` and `net`, for messages.

    Raises:
        UserError: it names no net, or one of another package.
    """
    file = weights_file(path, f"{where}.path")
    header = header_of(file)
    if header is None:
        raise UserError(
            f"{where}.net: {file} does not name its net, as a run's student does; choose it: "
            f"{where}=resnet18 {where}.path={file}"
        )
    node: dict[str, Any] = header["net"]
    check_allowlist(node, "net", f"{where}.net: {file}", remedy=f"give {where}.net yourself")
    return node
