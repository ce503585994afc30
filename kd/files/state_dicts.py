"""State dicts in a weights file: safetensors, or what `torch.load(weights_only=True)` accepts."""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd.errors import DamagedError, UserError
from kd.files.tensors import load_tensors

# Usual keys of the state dict in a checkpoint, by preference.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
DEEPEST = 3  # depth of nested mappings to search


@dataclass(frozen=True)
class StateDict:
    """Mapping of names to tensors in a file.

    Attributes:
        holders: keys that lead to it, outermost first; empty if it is the file itself.
        tensors: by the file's names.
        strays: names of entries that are no tensors, such as a step count or None.
        beside: keys beside the innermost holder.
    """

    holders: tuple[str, ...]
    tensors: dict[str, Tensor]
    strays: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def read_weights(path: Path, where: str) -> list[StateDict]:
    """Read all state dicts in a `.safetensors` or `torch.save` file; the usual places come first.

    Args:
        where: config key of the path, for messages.

    Raises:
        UserError: the file is missing, damaged, without named tensors, or a pickle that would run
            code.
    """
    content = read_content(path, where)
    if found := list(_states(content, (), ())):
        return found
    holds = (
        f"keys {', '.join(list(map(str, content))[:10])}"
        if isinstance(content, Mapping)
        else f"a {type(content).__name__}"
    )
    raise UserError(
        f"{where}: {path} holds no state dict (a mapping of names to tensors) but {holds}; "
        f"usual are the file itself, or its key {', '.join(CONTAINERS)}"
    )


def _states(
    value: object, holders: tuple[str, ...], beside: tuple[str, ...]
) -> Iterator[StateDict]:
    if not isinstance(value, Mapping):
        return
    named = {name: each for name, each in value.items() if isinstance(name, str)}
    if tensors := {name: each for name, each in named.items() if isinstance(each, Tensor)}:
        strays = tuple(str(name) for name in value if name not in tensors)
        yield StateDict(holders, tensors, strays, beside)
    if len(holders) < DEEPEST:
        usual = [name for name in CONTAINERS if name in named]
        for name in [*usual, *(each for each in named if each not in usual)]:
            yield from _states(named[name], (*holders, name), tuple(named))


def read_content(path: Path, where: str) -> object:
    """Read everything in a weights file; only tensors and plain values are unpickled.

    Raises:
        UserError: the file is missing, damaged, or a pickle that would run code.
    """
    try:
        return (
            load_tensors(path)
            if path.suffix == ".safetensors"
            else torch.load(path, "cpu", weights_only=True)
        )
    except DamagedError as error:
        raise DamagedError(f"{where}: {error}") from error
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if needed is None:
            raise UserError(f"{where}: {path} is no weights file") from error
        raise UserError(_refusal(path, where, needed[1])) from error
    except Exception as error:  # readers raise undocumented errors on damaged files
        if isinstance(error, OSError) and not path.is_file():
            raise UserError(f"{where}: cannot read {path}: {error.strerror or error}") from error
        in_words = not isinstance(error, LookupError | TypeError | AttributeError)
        reason = str(error).partition("\n")[0].partition(". ")[0] if in_words else ""
        why = reason or ("it is no archive of torch" if path.stat().st_size else "it is empty")
        raise UserError(f"{where}: {path} is no weights file, or a damaged one: {why}") from error


def _refusal(path: Path, where: str, needed: str) -> str:
    return (
        f"{where}: {path} is a pickle that needs more than tensors to load ({needed}), so it "
        "could run any code; refused.\n  Where you trust it, convert it once: import torch; "
        f"x = torch.load(PATH, weights_only=False); torch.save({_state_in(_outline(path))}, "
        "'weights.pt')"
    )


def _state_in(outline: object) -> str:
    """Return the Python expression for the state dict in a loaded file x with this outline."""
    if not isinstance(outline, Mapping):
        return "x.state_dict()"
    places = list(_places(outline, "x"))
    if places:  # the first of those with most tensors
        return max(places, key=lambda place: place[1])[0]
    nets = [name for name, value in outline.items() if isinstance(value, _Blank)]
    named = [name for name in CONTAINERS if name in nets] or nets
    return f"x[{named[0]!r}].state_dict()" if named else "x"


def _places(outline: Mapping[str, object], x: str, depth: int = 0) -> Iterator[tuple[str, int]]:
    """Iterate over the mappings with tensors: their expression, and the number of tensors."""
    if tensors := sum(isinstance(value, _BlankTensor) for value in outline.values()):
        yield x, tensors
    usual = [name for name in CONTAINERS if name in outline]
    for name in [*usual, *(each for each in outline if each not in usual)]:
        inner = outline[name]
        if isinstance(inner, Mapping) and depth < DEEPEST:
            yield from _places(inner, f"{x}[{name!r}]", depth + 1)


class _Blank:
    """Placeholder for anything that is not read: a net, a storage, a custom class."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...

    def __setitem__(self, _: object, __: object) -> None: ...

    def append(self, _: object) -> None:
        """Ignore items that a pickle appends to a custom list."""

    def extend(self, _: object) -> None:
        """Ignore items that a pickle adds to a custom list."""


class _BlankTensor(_Blank):
    """Placeholder for a tensor."""


class _Outline(pickle.Unpickler):
    """Unpickler of mappings only; classes become placeholders, so nothing is imported or called."""

    def find_class(self, module: str, name: str) -> object:
        """Return `OrderedDict`, or a placeholder."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return _BlankTensor if module == "torch._utils" else _Blank

    def persistent_load(self, _: object) -> object:
        """Return a placeholder for a tensor's storage."""
        return _Blank()


def _outline(path: Path) -> object:
    """Return the mappings in a `torch.save` file with placeholders for the rest."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(each for each in archive.namelist() if each.endswith("/data.pkl"))
                with archive.open(name) as file:
                    return _Outline(file).load()
        with path.open("rb") as file:  # older than PyTorch 1.6: the fourth of several pickles
            return [_Outline(file).load() for _ in range(4)][-1]
    except Exception:  # a pickle from elsewhere may raise anything
        return {"state_dict": {"": _BlankTensor()}}
