"""Records in JSON with a schema number, read back."""

import json
from pathlib import Path
from typing import Any

from kd.errors import Damaged, UserError


def read_record(path: Path, schema: int, what: str) -> dict[str, Any]:
    """A record. It is plain JSON without a checksum: whoever edits it is taken at his word.

    Args:
        schema: the latest that is understood.
        what: it should be, such as `report`.

    Raises:
        OSError: it is not there, or cannot be read.
        Damaged: it is no JSON, or no record.
        UserError: a later kd wrote it.
    """
    try:
        record = dict(json.loads(path.read_bytes()))
        number = int(record["schema"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"{path} is damaged, or no {what} of kd ({error!r})") from error
    if number > schema:
        raise UserError(
            f"{path} was written by a later kd (schema {number}; this one reads {schema})"
        )
    return record
