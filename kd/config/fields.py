"""What a single value of the config may be, beyond its type."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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

Trains = Literal["all", "head", "none"]
LearningRate = Annotated[
    Any,
    BeforeValidator(read_rate),
    Field(description=f"one of {', '.join(RATES)}, or {{schedule: NAME, ...}} with its numbers"),
]  # see kd.training.learning_rate
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch's generators take
Node = dict[
    str, Any
]  # `_target_` and its keywords; those are checked against the target's signature when it is built

LONGEST = 160  # bytes of a run's name; a file's may have 255, with what is put before and after


@dataclass(frozen=True)
class Accepted:
    """A value that passes a test.

    Attributes:
        words: which values do.
        test: raises `PydanticCustomError` itself, or says whether the value does.
    """

    words: str
    test: Callable[[Any], bool]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Check after the type."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """For `--help`."""
        return {"description": self.words}

    def _checked(self, found: Any) -> Any:
        if not self.test(found):
            raise PydanticCustomError("accepted", "accepted is {words}", {"words": self.words})
        return found


def number(knob: str, accept: Accept) -> Accepted:
    """A number or a schedule, which stays as it stands; refused if a value of it is out of range."""

    def test(value: Any) -> bool:
        try:
            make_schedule(value, knob, accept)
        except UserError as error:
            raise _refused(str(error)) from None
        return True

    return Accepted(f"{accept.words}, or a schedule of such", test)


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
