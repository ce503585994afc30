"""Records in JSON with a schema number: written whole, read back checked."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kd.errors import DamagedError, UserError, first_of


class Record(BaseModel):
    """What a JSON file holds, or a part of it.

    Keys that a class does not have are ignored when a file is read. Keys that were not given are
    not written.
    """

    model_config = ConfigDict(strict=True, frozen=True, populate_by_name=True)

    def plain(self) -> dict[str, object]:
        """The record as dictionaries and lists, under the keys of the file."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def text(self) -> str:
        """The record as the text of a JSON file."""
        return json.dumps(self.plain(), indent=1)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(path: Path, kind: type[AnyRecord], schema: int, what: str) -> AnyRecord:
    """Read a record. It is plain JSON without a checksum: whoever edits it is taken at his word.

    Args:
        kind: the class that it must fit.
        schema: the latest that is understood.
        what: it should be, such as `report`.

    Raises:
        OSError: it is not there, or cannot be read.
        DamagedError: it is no JSON, or no such record.
        UserError: a later kd wrote it.
    """
    try:
        found = dict(json.loads(path.read_bytes()))
        number = int(found["schema"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged, or no {what} of kd ({error!r})") from error
    if number > schema:
        raise UserError(
            f"{path} was written by a later kd (schema {number}; this one reads {schema})"
        )
    try:
        return kind.model_validate_json(json.dumps(found))
    except ValidationError as error:
        raise DamagedError(f"{path} is damaged, or no {what} of kd: {first_of(error)}") from None
