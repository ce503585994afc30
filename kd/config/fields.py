"""Constraints on single config values, beyond their type."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import PydanticCustomError, core_schema

from kd.config.rates import RATES, read_rate
from kd.config.schedules import Accept, make_schedule
from kd.errors import UserError

Trains = Literal["all", "head", "frozen_norms", "none"]
Match = Literal["name", "order"]
Resize = Literal["stretch", "crop", "pad"]  # see kd.data.decode
Interpolation = Literal["bilinear", "bicubic", "lanczos", "box"]
Side = Annotated[int, Field(ge=1, le=8192)]  # of an image in pixels; that is some 200 MB
# See kd.training.learning_rate
LearningRate = Annotated[
    str | dict[str, object],
    BeforeValidator(read_rate),
    Field(description=f"one of {', '.join(RATES)}, or {{schedule: NAME, ...}} with its numbers"),
]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # range of torch's generators
# `_target_` and keywords, which are checked against the target's signature when it is built
Node = dict[str, object]

LONGEST = 160  # bytes of a run's name; a file name may have 255, with prefix and suffix


@dataclass(frozen=True)
class AcceptedValue:
    """Constraint: a value must pass a test.

    Attributes:
        words: description of the accepted values.
        test: returns whether a value passes, or raises `PydanticCustomError` itself.
    """

    words: str
    test: Callable[[object], bool]

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Add the test after the type check."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, object]:
        """Return the schema for `--help`."""
        return {"description": self.words}

    def _check(self, found: object) -> object:
        if not self.test(found):
            raise PydanticCustomError("accepted", "accepted is {words}", {"words": self.words})
        return found


def number(knob: str, accept: Accept) -> AcceptedValue:
    """Constrain a number or schedule by range; a schedule is kept as written."""

    def test(value: object) -> bool:
        try:
            make_schedule(value, knob, accept)
        except UserError as error:
            raise _refusal(str(error)) from None
        return True

    return AcceptedValue(f"{accept.words}, or a schedule of such", test)


def _folder_name(found: str) -> str:
    """Validate a folder name that fits beside ours, with a time before it."""
    # As are folders in progress
    hidden = found.startswith(".") or found.endswith(".partial")
    if (
        not found
        or hidden
        or re.search(r"[/\\\x00-\x1f\x7f-\x9f]", found)
        or len(os.fsencode(found)) > LONGEST
    ):
        raise PydanticCustomError(
            "name",
            "accepted is a folder's name: up to {longest} bytes, no slash or control "
            "character, neither a dot before nor .partial after it",
            {"longest": LONGEST},
        )
    return found


def _refusal(text: str) -> PydanticCustomError:
    # `kd.config.checking` shows such a text unchanged
    return PydanticCustomError("number", "{text}", {"text": text})


def seconds_of(length: str) -> float:
    """Return a length of time such as `90s`, `30min`, `1h30min` in seconds; 0 if it is none."""
    parts = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)min)?(?:([\d.]+)s)?", length)
    try:
        found = [float(each or 0) for each in parts.groups()] if parts else []
    except ValueError:
        return 0.0
    return sum(number * unit for number, unit in zip(found, (3600, 60, 1), strict=False))


Budget = Annotated[
    str,
    AcceptedValue("a length of time such as 90s, 30min, 1h30min", lambda it: seconds_of(it) > 0),
]
FolderName = Annotated[str, AfterValidator(_folder_name)]
