"""Records in JSON that tell whether they are as they were written: with a schema number, and a checksum as `seal`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd.errors import Damaged, UserError

SEAL = "seal"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, with its checksum."""
    return {**record, SEAL: _seal(record)}


def read_sealed(path: Path, schema: int, what: str, unmarked: int | None = None) -> dict[str, Any]:
    """A record. One without a checksum, as all were once, or as somebody wrote it himself, is taken as it is.

    Args:
        schema: the latest that is understood.
        what: it should be, such as `report`.
        unmarked: the schema of records of before they had a number; None where all have one.

    Raises:
        OSError: it is not there, or cannot be read.
        Damaged: it is not as it was written.
        UserError: a later kd wrote it.
    """
    try:
        record = dict(json.loads(path.read_bytes()))
        number, seal = int(record.get("schema", unmarked)), record.pop(SEAL, None)  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError) as error:
        raise Damaged(f"{path} is damaged, or no {what} of kd ({error!r})") from error
    if number > schema:
        raise UserError(
            f"{path} was written by a later kd (schema {number}; this one reads {schema})"
        )
    if seal is not None and seal != _seal(record):
        raise Damaged(
            f"{path} is damaged: its checksum is wrong. If you have edited it, remove {SEAL!r} from it"
        )
    return record


def _seal(record: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(record))  # keys are strings then, in whose order they are sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
