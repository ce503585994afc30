"""Which file a teacher's weights are in, and what that file says of itself; torch is not needed to know it."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kd.errors import UserError, first_of
from kd.files.allowlist import trusted

STUDENT = "student.safetensors"
SCHEMA = 1
Count = Annotated[int, Field(gt=0, le=2**20)]  # channels, the side of an image, classes


def weights_file(path: str | Path, where: str) -> Path:
    """The file itself, or the student's weights where the path is a run's folder.

    Args:
        where: the config's key for the path, for messages.

    Raises:
        UserError: there is no such file, or the folder is no run's.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        if not (found / STUDENT).is_file():
            raise UserError(
                f"{where}: the folder {found.absolute()} has no {STUDENT}, so it is no run's; name a file"
            )
        found /= STUDENT
    if not found.is_file():
        raise UserError(f"{where}: there is no file {found.absolute()}")
    return found


class Header(BaseModel):
    """What a run's student says of itself; all but the net may be missing, for who does not need it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    schema_: Annotated[int, Field(alias="schema")] = SCHEMA
    net: dict[str, Any]
    shape: tuple[Count, Count, Count] | None = None
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None


def header_of(path: Path) -> dict[str, Any] | None:
    """What a run wrote into the header of its student's file: net, shape, classes, mean and std; None for other files.

    A file that is damaged counts as another file here: reading its tensors tells what is wrong with it.

    Raises:
        UserError: what it says of itself makes no sense, or a later kd wrote it.
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
            schema, _ = dict(found).get("schema", SCHEMA), found["net"]
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
    return {
        name: value for name, value in found.items() if name != "sha256"
    }  # which is for `kd.files.tensors`


def net_of(path: str | Path, where: str) -> dict[str, Any]:
    """The node of the net that a file names itself; a file is data, so it may name none but the project's own nets.

    Args:
        where: the config's prefix of `path` and `net`, for messages.

    Raises:
        UserError: it names none, or one of another package.
    """
    file = weights_file(path, f"{where}.path")
    header = header_of(file)
    if header is None:
        raise UserError(
            f"{where}.net: {file} does not name its net, as a run's student does; choose it: "
            f"{where}=resnet18 {where}.path={file}"
        )
    node: dict[str, Any] = header["net"]
    trusted(node, "net", f"{where}.net: {file}", remedy=f"give {where}.net yourself")
    return node
