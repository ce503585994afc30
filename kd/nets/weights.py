"""Weights from a file: safetensors, or what `torch.load(weights_only=True)` accepts; never a pickle that runs code."""

import pickle
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import Damaged, UserError
from kd.files.tensors import load_tensors
from kd.log import say

# Where a checkpoint keeps its state dict, and what wrappers put before a net's own names.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
COUNTER = "num_batches_tracked"  # of batch norm; files of before PyTorch 0.4.1 have none


def load_weights(net: nn.Module, path: Path, where: str, head: Collection[str] = ()) -> None:
    """Load a file's state dict into `net`; names and shapes must be the same, but for wrappers' prefixes.

    Args:
        where: the config's key for the path, for messages.
        head: names of the last layer's tensors. Where those of the file are for another number of classes, the net
            keeps its own.

    Raises:
        UserError: the file cannot be read, or its tensors are not those of the net; says which.
    """
    put_weights(net, read_weights(path, where), path, where, head)


def put_weights(
    net: nn.Module, state: dict[str, Tensor], path: Path, where: str, head: Collection[str] = ()
) -> None:
    """As `load_weights`, of a state dict that `read_weights` has read."""
    expected = net.state_dict()
    found, left = unwrapped(state, expected, getattr(net, "other_names", ()))
    found = {name: expected[name] for name in expected if name.endswith(COUNTER)} | found
    other = [name for name in head if name in found and _other_classes(found[name], expected[name])]
    if other:
        say(
            f"{where}: {path.name} is for {len(found[other[0]])} classes; {', '.join(other)} start afresh"
        )
        found |= {name: expected[name] for name in head}
    problems = _mismatches(found, expected)
    if problems:
        about = f"  the net is {type(net).__name__} with {len(expected)} tensors; the file has {len(found)}"
        raise UserError(
            "\n".join([f"{where}: the weights in {path} do not fit the net:", *problems, about])
        )
    if bad := [name for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())]:
        raise UserError(
            f"{where}: the weights in {path} are not all finite numbers, in {_some(bad)}"
        )
    if left:
        say(
            f"{where}: {len(left)} tensors of {path.name} are none of the net's and are left out: {_some(left)}"
        )
    net.load_state_dict(found)


def _mismatches(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """A line for each way in which the tensors differ from the net's, and one where another number of classes may be
    the reason: tensors that differ in the number of their rows alone.
    """
    wrong = [
        name for name in expected if name in found and found[name].shape != expected[name].shape
    ]
    shapes = [
        f"{name} {list(found[name].shape)}, the net has {list(expected[name].shape)}"
        for name in wrong
    ]
    lists = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": shapes,
    }
    lines = [f"  {title}: {_some(names)}" for title, names in lists.items() if names]
    rows = {
        (len(found[name]), len(expected[name]))
        for name in wrong
        if found[name].ndim and expected[name].ndim
    }
    if len(rows) == 1 and all(_other_classes(found[name], expected[name]) for name in wrong):
        ((theirs, ours),) = rows
        lines.append(f"  the file is for {theirs} classes, the data has {ours}")
    return lines


def _some(names: Collection[str]) -> str:
    """The first ten, and how many more."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(list(names)[:10]) + more


def _other_classes(found: Tensor, expected: Tensor) -> bool:
    return (
        0 < found.ndim == expected.ndim
        and len(found) != len(expected)
        and found.shape[1:] == expected.shape[1:]
    )


def unwrapped(
    state: dict[str, Tensor], names: Collection[str], other_names: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict under the net's own names, without what wrappers put before them.

    Of all ways to take prefixes off, none included, the one that gives most of the net's names is taken, of several the
    shortest; what does not carry the prefix is left out, such as a loss that learned.

    Args:
        names: those of the net.
        other_names: how others call the net's parts: regular expressions, and what the net calls them.

    Returns:
        the state dict, and the names in the file of what was left out of it.
    """
    best = {name: name for name in state}
    for stripped in _strippings(best):
        for candidate in (stripped, _renamed(stripped, other_names)):
            if len(set(names) & candidate.keys()) > len(set(names) & best.keys()):
                best = candidate
    kept = set(best.values())
    return {name: state[origin] for name, origin in best.items()}, [
        name for name in state if name not in kept
    ]


def _renamed(names: Mapping[str, str], other_names: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The same tensors under the names that the net gives them; each rule that fits a name is applied in turn."""
    found = {}
    for name, origin in names.items():
        for pattern, ours in other_names:
            name = re.sub(pattern, ours, name)
        found[name] = origin
    return found


def _strippings(names: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """New names to names in the file, for each sequence of prefixes that some names carry; the shortest first."""
    level = [dict(names)]
    while level:
        yield from level
        level = [
            {
                name.removeprefix(prefix): origin
                for name, origin in each.items()
                if name.startswith(prefix)
            }
            for each in level
            for prefix in PREFIXES
            if any(name.startswith(prefix) for name in each)
        ]


def read_weights(path: Path, where: str) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file, or in what `torch.save` wrote: by itself, or within a checkpoint.

    Raises:
        UserError: it is not there, is damaged, holds something else, or is a pickle that would run code.
    """
    state: Any = _read(path, where)
    holders: list[str] = []
    while isinstance(state, Mapping) and (
        inner := [k for k in CONTAINERS if isinstance(state.get(k), Mapping)]
    ):
        holders.append(inner[0])
        state = state[inner[0]]
    if (
        isinstance(state, Mapping)
        and state
        and all(isinstance(value, Tensor) for value in state.values())
    ):
        return {str(name): tensor for name, tensor in state.items()}
    inside = f"[{']['.join(repr(key) for key in holders)}]" if holders else ""
    holds = (
        f"keys {_some([str(key) for key in state])}"
        if isinstance(state, Mapping)
        else f"a {type(state).__name__}"
    )
    raise UserError(
        f"{where}: {path}{inside} holds no state dict (a mapping of names to tensors) but {holds}; "
        f"it is looked for at the top and under {', '.join(CONTAINERS)}"
    )


def _read(path: Path, where: str) -> Any:
    try:
        return (
            load_tensors(path)
            if path.suffix == ".safetensors"
            else torch.load(path, "cpu", weights_only=True)
        )
    except Damaged as error:
        raise Damaged(f"{where}: {error}") from error
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if needed is None:
            raise UserError(f"{where}: {path} is no weights file") from error
        raise UserError(_refused(path, where, needed[1])) from error
    except Exception as error:  # what the readers raise on a damaged file is written down nowhere
        if isinstance(error, OSError) and not path.is_file():
            raise UserError(f"{where}: cannot read {path}: {error.strerror or error}") from error
        in_words = not isinstance(error, LookupError | TypeError | AttributeError)
        reason = str(error).partition("\n")[0].partition(". ")[0] if in_words else ""
        why = reason or ("it is no archive of torch" if path.stat().st_size else "it is empty")
        raise UserError(f"{where}: {path} is no weights file, or a damaged one: {why}") from error


def _refused(path: Path, where: str, needed: str) -> str:
    load = "import torch; x = torch.load(PATH, weights_only=False); "
    if path.suffix == ".ckpt":  # Lightning's, with hyper-parameters or whatever else stood in it
        convert = "torch.save(x['state_dict'], 'weights.pt')"
    elif needed.startswith("torch.nn."):
        convert = "torch.save(x.state_dict(), 'weights.pt')"
    else:
        convert = "torch.save(x['state_dict'], 'weights.pt'), or x.state_dict() where x is a net"
    return (
        f"{where}: {path} is a pickle that needs more than tensors to load ({needed}), so it could run any code; "
        f"refused.\n  Where you trust it, convert it once: {load}{convert}"
    )
