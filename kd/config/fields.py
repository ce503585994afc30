"""What a single value of the config may be, beyond its type."""

import os
import re
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from kd.config.schedules import Accept, make_schedule
from kd.errors import UserError

Trains = Literal["all", "head", "none"]
LearningRate = Literal["onecycle", "cosine", "step", "step_late", "triangular", "constant"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch's generators take
Node = dict[
    str, Any
]  # `_target_` and its keywords; those are checked against the target's signature when it is built

LONGEST = 160  # bytes of a run's name; a file's may have 255, with what is put before and after


def number(knob: str, accept: Accept) -> AfterValidator:
    """A number or a schedule, which stays as it stands; refused if a value of it is out of range."""
    return AfterValidator(partial(_number, knob=knob, accept=accept))


def _number(value: Any, knob: str, accept: Accept) -> Any:
    try:
        make_schedule(value, knob, accept)
    except UserError as error:
        raise _refused(str(error)) from None
    return value


def _folder_name(found: str) -> str:
    """A name that a folder can have, beside others of ours and with the time before it."""
    hidden = found.startswith(".") or found.endswith(
        ".partial"
    )  # as are those that are being filled
    if (
        not found
        or hidden
        or re.search(r"[/\\\x00-\x1f\x7f-\x9f]", found)
        or len(os.fsencode(found)) > LONGEST
    ):
        raise PydanticCustomError(
            "name",
            "accepted is a folder's name: up to {longest} bytes, no slash or control character, neither a dot before "
            "nor .partial after it",
            {"longest": LONGEST},
        )
    return found


def _refused(text: str) -> PydanticCustomError:
    return PydanticCustomError(
        "number", "{text}", {"text": text}
    )  # `kd.config.checking` shows such a text as it is


FolderName = Annotated[str, AfterValidator(_folder_name)]
