"""JSON records with a schema number."""

import json
from pathlib import Path
from typing import Any

from kd.errors import DamagedError, UserError


def read_record(path: Path, schema: int, what: str) -> dict[str, Any]:
    """Read a record. It is plain JSON without checksum, so that people may edit it.

    Args:
        schema: latest schema that is understood.
        what: kind of the record, such as `report`.

    Raises:
        OSError: it is missing or cannot be read.
        DamagedError: it is no JSON, or no record.
        UserError: a later kd wrote it.
    """
    try:
        record = dict(json.loads(path.read_bytes()))
        number = int(record["schema"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged, or no {what} of kd ({error!r})") from error
    if number > schema:
        raise UserError(
            f"{path} was written by a later kd (schema {number}; this one reads {schema})"
        )
    return record
