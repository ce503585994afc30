"""Validates a composed config; reports one line per wrong key."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kd.errors import UserError, nearest

M = TypeVar("M", bound=BaseModel)
# In pydantic's location of a problem, the type of a key that may have several
TYPE = re.compile(r"(int|str|float|bool|constrained-\w+|function-.+|(list|dict|tuple)\[.+)$")


def as_floats(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Convert integers under these keys to floats.

    Raises:
        UserError: a key refers to something missing.
    """
    with _composition(cfg):
        for key in keys:
            if type(cfg.get(key)) is int:
                cfg[key] = float(cfg[key])


@contextmanager
def _composition(cfg: DictConfig) -> Iterator[None]:
    """Turn errors of a config's references into one-line messages."""
    try:
        yield
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: must be given") from None
    except InterpolationKeyError as error:
        raise UserError(
            reference_error(error, OmegaConf.to_container(cfg, resolve=False))
        ) from None
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).partition("\n")[0]
        raise UserError(f"{error.full_key or 'config'}: {reason}") from None


def reference_error(error: InterpolationKeyError, plain: Any) -> str:
    """Describe a reference to a missing key.

    Args:
        plain: the config with unresolved references.
    """
    found = re.search("'(.*)'", str(error.msg or error))
    missing = found[1] if found else ""
    keys = dotted_keys(plain)
    asks = (key for key, value in keys.items() if value == f"${{{missing}}}")
    at = f"{error.full_key or next(asks, 'config')}: refers to {missing}, and"
    term = re.match(r"loss\.terms\.(\w+)\.", missing)
    terms = plain.get("loss", {}).get("terms") or {}
    whole = [name for name, each in terms.items() if "_target_" in (each or {}).get("loss", {})]
    if term and term[1] not in whole:
        return (
            f"{at} the loss has the terms {', '.join(whole)}; the recipe that refers to it is "
            f"for a loss that has it, such as loss={term[1]}"
        )
    return f"{at} there is no such key{nearest(missing, keys)}"


def dotted_keys(plain: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return all dotted keys of a config, with their values."""
    keys = {}
    for name, value in plain.items():
        keys[f"{prefix}{name}"] = value
        if isinstance(value, Mapping):
            keys |= dotted_keys(value, f"{prefix}{name}.")
    return keys


def check_as(model: type[M], cfg: DictConfig) -> M:
    """Validate a command's composed config as `model`.

    Raises:
        UserError: one line per wrong key.
    """
    with _composition(cfg):
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return validate(model, plain)


def validate(model: type[M], plain: object, prefix: str = "") -> M:
    """Validate a plain mapping as `model`.

    Args:
        prefix: of the keys, in messages.

    Raises:
        UserError: one line per wrong key.
    """
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        raise UserError(
            "\n".join(describe(each, model, prefix) for each in problems(error))
        ) from None


def problems(error: ValidationError, leave_out: Collection[str] = ()) -> list[ErrorDetails]:
    """Return a problem for each key: pydantic has one for each type that a key may have.

    Of a key whose value has one of the types, the problem is that type's. Else it lists them all.

    Args:
        leave_out: pydantic's names of problems that do not count.
    """
    by_key: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for each in error.errors():
        if each["type"] in leave_out:
            continue
        at = next((i for i, part in enumerate(each["loc"]) if TYPE.match(str(part))), None)
        by_key.setdefault(each["loc"][:at], []).append(each)
    return [each for key, found in by_key.items() for each in _problems_of_key(key, found)]


def _problems_of_key(key: tuple[int | str, ...], found: list[ErrorDetails]) -> list[ErrorDetails]:
    of_type = [each for each in found if not _is_of_another_type(each, key)]
    if len(found) == 1 or of_type:
        return [
            {**each, "loc": tuple(part for part in each["loc"] if not TYPE.match(str(part)))}
            for each in of_type or found
        ]
    words = dict.fromkeys(each["msg"].removeprefix("Input should be ") for each in found)
    return [{**found[0], "loc": key, "msg": f"Input should be {', or '.join(words)}"}]


def _is_of_another_type(error: ErrorDetails, key: tuple[int | str, ...]) -> bool:
    return error["type"].endswith("_type") and len(error["loc"]) == len(key) + 1


def describe(error: ErrorDetails, model: type[BaseModel], prefix: str = "") -> str:
    """Describe a pydantic error in one line: the key, what was found, what is accepted.

    Args:
        model: model of the keys.
        prefix: of the key.
    """
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{prefix}{key}: no such key{nearest(key, known_keys(model))}"
    if error["type"] == "number":
        return str(error["msg"])
    if error["type"] == "missing":
        return f"{prefix}{key}: must be given"
    if not key:
        return str(error["ctx"]["error"])
    return f"{prefix}{key}: found {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return all dotted keys of a config model."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys
