"""Calling what a config node's `_target_` names: the only registry of nets, losses, data sets and optimisers."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import hydra.utils

from kd.errors import UserError, nearest


def construct(node: Mapping[str, Any], where: str, /, **offered: Any) -> Any:
    """Call the node's `_target_` with the node's keywords, and with those of `offered` that it has parameters for.

    Args:
        node: a mapping with `_target_`, a dotted path, and its keywords.
        where: the node's key in the config, for messages.
        offered: what the project knows; used where the target asks for it by name and the node does not set it.

    Raises:
        UserError: the target cannot be imported, a keyword is not one of its parameters, one that it needs is
            missing, or the target itself refuses a value.
    """
    target, keywords = resolve_target(node, where)
    accepted = parameters_of(target)
    keywords = {name: value for name, value in offered.items() if name in accepted} | keywords
    check_keywords(target, keywords, where)
    try:
        return target(**keywords)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def resolve_target(node: Mapping[str, Any], where: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The object that a node's `_target_` names, and the node's other entries.

    Raises:
        UserError: where there is no such object.
    """
    keywords = {str(name): value for name, value in node.items() if name != "_target_"}
    if not isinstance(node.get("_target_"), str):
        raise UserError(f"{where}: needs a `_target_`, the dotted path of what to build; found {dict(node)!r}")
    try:
        target = hydra.utils.get_object(node["_target_"])
    except (ImportError, ValueError, AttributeError) as error:
        raise UserError(f"{where}._target_: cannot import {node['_target_']!r}: {error}") from error
    try:
        inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}._target_: {node['_target_']!r} cannot be called by keywords: {error}") from error
    return target, keywords


def parameters_of(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """What `target` can be called with; of a class whose `__init__` hands `**rest` on, its base's parameters too."""
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


def check_keywords(target: Callable[..., Any], keywords: Mapping[str, Any], where: str) -> None:
    """Refuse keywords that `target` has no parameter for, and the lack of one that it needs.

    Raises:
        UserError: naming the keyword, and what is accepted.
    """
    parameters = parameters_of(target)
    accepted = [name for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in keywords:
            if name not in accepted:
                hint = nearest(name, accepted)
                raise UserError(f"{where}.{name}: no such parameter; accepted are {', '.join(accepted)}{hint}")
    missing = [
        name for name in accepted if parameters[name].default is inspect.Parameter.empty and name not in keywords
    ]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} must be given")
