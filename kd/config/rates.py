"""Learning-rate schedules in the config."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from kd.errors import UserError, nearest

# Parameters of each schedule with their defaults; lengths in epochs.
RATES: dict[str, dict[str, Any]] = {
    "onecycle": {},
    "cosine": {},
    "warmup_cosine": {"warmup": None, "end": 0.0},
    "step": {},
    "step_late": {},
    "milestones": {"at": None, "factor": 0.1, "warmup": 0.0},
    "triangular": {},
    "constant": {},
}


def read_rate(found: Any) -> str | dict[str, Any]:
    """Validate a schedule, a name of `RATES` or a mapping of `schedule: NAME`; fills in defaults.

    Raises:
        PydanticCustomError: it is neither, or has a number out of range.
    """
    node = {"schedule": found} if isinstance(found, str) else found
    if not isinstance(node, Mapping) or node.get("schedule") not in RATES:
        name = node.get("schedule") if isinstance(node, Mapping) else node
        _refuse("", found, f"{', '.join(RATES)}{nearest(str(name), RATES)}")
    name = node["schedule"]
    own = {k: v for k, v in node.items() if k != "schedule"}
    for key, value in own.items():
        if key not in RATES[name]:
            accepted = ", ".join(RATES[name]) or "none"
            text = (
                f"lr_schedule.{key}: {name} has no such number; it has "
                f"{accepted}{nearest(str(key), RATES[name])}"
            )
            raise PydanticCustomError("number", "{text}", {"text": text})
        _check(key, value)
    filled = {**RATES[name], **own}
    if name == "milestones" and filled["at"] is None:
        _refuse(".at", None, "a list of epochs after which the rate falls, as [60, 120, 160]")
    return {"schedule": name, **filled} if filled else name


def _check(key: str, value: Any) -> None:
    if key == "at":
        rising = isinstance(value, list) and value and all(_is_number(each) for each in value)
        if not rising or value[0] <= 0 or value != sorted(set(value)):
            _refuse(".at", value, "a list of epochs above 0, each after the one before")
    elif key == "warmup" and not (value is None or (_is_number(value) and value >= 0)):
        _refuse(".warmup", value, "a number of epochs from 0, or null for a twentieth of the stage")
    elif key == "end" and not (_is_number(value) and 0 <= value < 1):
        _refuse(".end", value, "a share of optim.lr, from 0 to below 1")
    elif key == "factor" and not (_is_number(value) and 0 < value < 1):
        _refuse(".factor", value, "a number between 0 and 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse(key: str, found: Any, accepted: str) -> None:
    text = f"lr_schedule{key}: found {found!r}; accepted is {accepted}"
    raise PydanticCustomError("number", "{text}", {"text": text})


def rate_in_words(schedule: str | Mapping[str, Any]) -> str:
    """Format a schedule for people: its name, and its numbers if any."""
    if isinstance(schedule, str):
        return schedule
    numbers = [f"{k}={v}" for k, v in schedule.items() if k != "schedule" and v is not None]
    return f"{schedule['schedule']}({', '.join(numbers)})"


def check_length(schedule: str | Mapping[str, Any], epochs: int, key: str) -> None:
    """Refuse a schedule longer than its stage.

    Args:
        key: of the schedule in the config.

    Raises:
        UserError: warm-up fills the whole stage, or a milestone lies after the last epoch.
    """
    if isinstance(schedule, str) or epochs == 0:
        return
    if (schedule.get("warmup") or 0) >= epochs:
        raise UserError(
            f"{key}.warmup: found {schedule['warmup']} of {epochs} epochs; accepted are fewer "
            "than those"
        )
    late = [each for each in schedule.get("at", ()) if each >= epochs]
    if late:
        raise UserError(
            f"{key}.at: found {late[0]}, but training ends after {epochs} epochs; accepted "
            "are fewer than those"
        )
