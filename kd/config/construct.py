"""Calls a config node's `_target_`: the only registry of nets, losses, data and optimisers."""

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import hydra.utils
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from kd.config.checking import problems
from kd.errors import UserError, nearest

# Exceptions by which a target refuses a value: torch raises these for negative and too large sizes.
REFUSALS = (
    ArithmeticError,
    AssertionError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

# Pydantic errors to ignore: types that JSON does not have, such as a tensor, and choices, which the
# target reports better itself.
NOT_OURS = {
    "is_instance_of",
    "is_subclass_of",
    "callable_type",
    "needs_python_object",
    "literal_error",
}

# Hydra logs the import error that our message already has. A filter, since `disabled` is reset when
# Hydra sets up its logs.
hydra.utils.log.addFilter(lambda _: False)


def construct(node: Mapping[str, object], where: str, /, **extra: object) -> Any:
    """Call the node's `_target_` with the node's keywords, plus those of `extra` that it has
    parameters for.

    Args:
        node: mapping with `_target_`, a dotted path, and keywords.
        where: config key of the node, for messages.
        extra: values known to the project; used if the target has such a parameter and the node
            does not set it.

    Raises:
        UserError: the import fails, a keyword is unknown or missing, or the target refuses a value.
    """
    target, keywords = resolve_target(node, where)
    accepted = parameters_of(target)
    check_values(target, keywords, where)
    keywords = {name: value for name, value in extra.items() if name in accepted} | keywords
    check_keywords(target, keywords, where)
    try:
        return target(**keywords)
    except REFUSALS as error:
        raise UserError(f"{where}: {first_line(error)}") from error


def resolve_target(node: object, where: str) -> tuple[Callable[..., object], dict[str, object]]:
    """Import the object that a node's `_target_` names; returns it with the node's other entries.

    Raises:
        UserError: there is no such object.
    """
    if not isinstance(node, Mapping) or not isinstance(path := node.get("_target_"), str):
        raise UserError(
            f"{where}: needs a `_target_`, the dotted path of what to build; found {node!r}"
        )
    keywords = {str(name): value for name, value in node.items() if name != "_target_"}
    try:
        target = hydra.utils.get_object(path)
    except (ImportError, ValueError, AttributeError) as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"{where}._target_: cannot import {path!r}: {reason}") from error
    try:
        inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}._target_: {path!r} cannot be called by keywords: {error}"
        ) from error
    return target, keywords


def parameters_of(target: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of `target`; with `**rest` in its `__init__` also its base's."""
    found = dict(inspect.signature(target).parameters)
    if not inspect.isclass(target):
        return found
    for base in target.__mro__[1:]:
        rest = [name for name, p in found.items() if p.kind is p.VAR_KEYWORD]
        if not rest or base is object:
            break
        if inherited := vars(base).get("__init__"):
            del found[rest[0]]
            found = dict(list(inspect.signature(inherited).parameters.items())[1:]) | found
    return found


def first_line(error: BaseException) -> str:
    """Return an error's message without torch's stack trace; its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def check_values(target: Callable[..., object], keywords: Mapping[str, object], where: str) -> None:
    """Refuse values of other types than those annotated in `target`.

    Values are read as JSON, which is what a config holds: a list for a tuple, an integer for a
    float.

    Raises:
        UserError: names the keyword, what was found, and what is accepted.
    """
    hints = _hints(target)
    for name, value in keywords.items():
        if name not in hints:
            continue
        try:
            _type(hints[name]).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            if found := problems(error, NOT_OURS):
                inside = "".join(f"[{part}]" for part in found[0]["loc"] if isinstance(part, int))
                message = f"{found[0]['msg'][0].lower()}{found[0]['msg'][1:]}"
                if "valid array" in message:
                    message += f", such as [{found[0]['input']}]"
                raise UserError(
                    f"{where}.{name}{inside}: found {found[0]['input']!r}; {message}"
                ) from None
        # A type unknown to pydantic, or a value that is no JSON
        except (PydanticUserError, TypeError):
            continue


def _hints(target: Callable[..., object]) -> dict[str, object]:
    """Return the parameter types of a target; of a class also those of its bases' `__init__`."""
    bases = reversed(inspect.getmro(target)) if inspect.isclass(target) else []
    builders = [vars(each).get("__init__") for each in bases]
    found: dict[str, object] = {}
    for function in filter(inspect.isfunction, builders or [target]):
        # Types imported for type checking only
        with contextlib.suppress(NameError, TypeError):
            found |= get_type_hints(function, include_extras=True)
    return found


@functools.cache
def _type(hint: Any) -> TypeAdapter[object]:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def check_keywords(
    target: Callable[..., object], keywords: Mapping[str, object], where: str
) -> None:
    """Refuse unknown keywords of `target` and missing required ones.

    Raises:
        UserError: names the keyword, and what is accepted.
    """
    parameters = parameters_of(target)
    accepted = [
        name
        for name, p in parameters.items()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in keywords:
            if name not in accepted:
                hint = nearest(name, accepted)
                raise UserError(
                    f"{where}.{name}: no such parameter; accepted are {', '.join(accepted)}{hint}"
                )
    missing = [
        name
        for name in accepted
        if parameters[name].default is inspect.Parameter.empty and name not in keywords
    ]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} must be given")
