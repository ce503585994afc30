"""Loading weights from a file: which of its tensors are the net's, under which names."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kd.errors import UserError, nearest
from kd.files.header import is_hub_folder
from kd.files.state_dicts import CONTAINERS, StateDict, read_weights
from kd.log import say
from kd.nets.tensor_order import COUNTER, pair_in_order

# Keys and prefixes of checkpoints and wrappers; they do not describe the tensors.
PLAIN = {*CONTAINERS, "module", "_orig_mod"}
AVERAGED = {"ema", "swa", "averaged", "average", "shadow"}  # words in a key or prefix


@dataclass(frozen=True)
class Fit:
    """Tensors of a file under the names of a net.

    Attributes:
        state: their state dict in the file.
        prefix: prefix of their names there.
        tensors: by the net's names.
    """

    state: StateDict
    prefix: str
    tensors: Mapping[str, Tensor]

    @property
    def words(self) -> tuple[str, ...]:
        """Keys and prefixes that lead to the tensors."""
        return (*self.state.holders, *self.prefix.split(".")[:-1])

    @property
    def is_average(self) -> bool:
        """Whether the file's names call them averaged weights (EMA, SWA)."""
        swapped = "current_model_state" in self.state.beside  # Lightning's `WeightAveraging`
        lightning = swapped and self.state.holders[-1:] == ("state_dict",)
        # torch's `AveragedModel` stores a counter beside the module
        outer = self.prefix.removesuffix("module.")
        torchs = outer != self.prefix and f"{outer}n_averaged" in self.state.tensors
        return any(_tokens(word) & AVERAGED for word in self.words) or lightning or torchs

    @property
    def label(self) -> str:
        """Place in the file, for messages."""
        return ".".join(self.words) or "the top level"

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key: plain words first, then the shortest."""
        strange = [
            word for word in self.words if word not in PLAIN and not _tokens(word) & AVERAGED
        ]
        return len(strange), 0 if strange else len(self.words)


def _tokens(word: str) -> set[str]:
    return set(re.split(r"[\W_]+", word.lower()))


@dataclass(frozen=True)
class OutputChoice:
    """Outputs to take from a file's net that has other or more classes.

    Attributes:
        taken: per class the index of the output.
        of: number of outputs of the file's net.
        head: names of the tensors with one row per output.
    """

    taken: Sequence[int]
    of: int
    head: Collection[str]


def load_weights(
    net: nn.Module,
    path: Path,
    where: str,
    head: Collection[str] = (),
    which: str | None = None,
    outputs: OutputChoice | None = None,
    by_order: bool = False,
) -> None:
    """Load a file's tensors into `net`; names and shapes must match, except for a common prefix.

    Args:
        where: config key of the path, for messages.
        head: names of the last layer's tensors. If the file's have another number of classes or are
            missing, the net keeps its own.
        which: choice between several matching sets of weights in the file: `ema`, `raw`, or a key
            or prefix. None prefers averaged ones.
        outputs: outputs to take, if the file's net has more or another order; None takes all.
        by_order: pair the tensors in order, whatever their names.

    Raises:
        UserError: the file cannot be read, or its tensors do not match the net; says which.
    """
    read = getattr(net, "read_states", None) if is_hub_folder(path.parent) else None
    states = (read or read_weights)(path, where)
    put_weights(net, states, path, where, head, which, outputs, by_order)


def put_weights(
    net: nn.Module,
    states: Sequence[StateDict],
    path: Path,
    where: str,
    head: Collection[str] = (),
    which: str | None = None,
    outputs: OutputChoice | None = None,
    by_order: bool = False,
) -> None:
    """Load what `read_weights` returned; otherwise like `load_weights`."""
    expected = net.state_dict()
    if by_order:
        fits = _fits_in_order(states, expected, head, path, where)
    else:
        fits = [fit for state in states for fit in _fits(state, net)]
    fit = _choice(net, fits, path, where, which)
    if by_order:
        first = f"{next(iter(fit.state.tensors))} as {next(iter(fit.tensors))}"
        say(f"{where}: {len(fit.tensors)} tensors of {path.name} are taken in order, {first} first")
    found = {name: expected[name] for name in expected if name.endswith(COUNTER)}
    found |= fit.tensors
    if outputs:
        found |= _select_rows(found, expected, outputs, f"{where}: {path}")
    other = [name for name in head if name in found and _other_classes(found[name], expected[name])]
    gone = bool(head) and not any(name in found for name in head)
    if other or gone:
        why = f"is for {len(found[other[0]])} classes" if other else "has no last layer"
        say(f"{where}: {path.name} {why}; {', '.join(head)} start afresh")
        found |= {name: expected[name] for name in head}
    problems = _mismatches(found, expected, _key(where, "classes"))
    if problems:
        about = (
            f"  the net is {type(net).__name__} with {len(expected)} tensors; the file has "
            f"{len(found)}"
        )
        raise UserError(
            "\n".join([f"{where}: the weights in {path} do not fit the net:", *problems, about])
        )
    if bad := [name for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())]:
        raise UserError(
            f"{where}: the weights in {path} are not all finite numbers, in {_some(bad)}"
        )
    if fit.prefix:
        say(f"{where}: the names in {path.name} are taken without their prefix {fit.prefix!r}")
    left = [name for name in fit.state.tensors if not name.startswith(fit.prefix)]
    left += fit.state.strays
    if left:
        say(
            f"{where}: {len(left)} entries of {path.name} are none of the net's and are left "
            f"out: {_some(left)}"
        )
    net.load_state_dict(found)


def _select_rows(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], outputs: OutputChoice, where: str
) -> dict[str, Tensor]:
    """Select rows of the last layer, and of layers beside it such as auxiliary heads."""
    rows = list(outputs.taken)
    beside = [
        name
        for name, tensor in found.items()
        if name in expected
        and _other_classes(tensor, expected[name])
        and (len(tensor), len(expected[name])) == (outputs.of, len(rows))
    ]
    named = {*beside, *(name for name in outputs.head if name in found)}
    for name in named:
        if len(found[name]) != outputs.of:
            raise UserError(
                f"{where}: it is said to be for {outputs.of} classes, but its {name} is for "
                f"{len(found[name])}"
            )
    return {name: found[name][rows] for name in named}


def _choice(net: nn.Module, fits: Sequence[Fit], path: Path, where: str, which: str | None) -> Fit:
    """Choose the tensors of a file for a net.

    Preferred are the places and prefixes that cover most of the net's parameters, then averaged
    weights, then the plainest keys.

    Raises:
        UserError: none are called `which`, or the choice is ambiguous.
    """
    parameters = {name for name, _ in net.named_parameters()}

    def cover(fit: Fit) -> int:
        return len(parameters & fit.tensors.keys())

    if which is not None:
        most = max(map(cover, fits))
        fits = _fits_of_name([fit for fit in fits if 2 * cover(fit) >= most], which, path, where)
    most = max(map(cover, fits))
    whole = [fit for fit in fits if cover(fit) == most]
    averaged = [fit for fit in whole if fit.is_average]
    best = min(averaged or whole, key=lambda fit: fit.rank)
    if not most:
        return best
    labels = sorted({fit.label for fit in whole})
    if any(fit.rank == best.rank and fit.words != best.words for fit in averaged or whole):
        raise UserError(
            f"{where}: {path} holds several sets of weights that fit the net: "
            f"{', '.join(labels)}; choose one with {_key(where, 'state')}={best.label}"
        )
    if averaged or len(labels) > 1:
        kind = "averaged weights (EMA)" if best.is_average else "weights"
        others = ", ".join(label for label in labels if label != best.label)
        beside = f"; {others} would fit too ({_key(where, 'state')} chooses)" if others else ""
        say(f"{where}: took the {kind} in {best.label} of {path.name}{beside}")
    return _with_buffers(best, whole, net.state_dict().keys() - parameters)


def _with_buffers(fit: Fit, others: Sequence[Fit], buffers: Collection[str]) -> Fit:
    """Complete a fit with another's buffers: many averages cover parameters only."""
    gone = {name for name in buffers if name not in fit.tensors and not name.endswith(COUNTER)}
    for other in others if gone else ():
        if gone <= other.tensors.keys():
            return replace(fit, tensors={**{n: other.tensors[n] for n in gone}, **fit.tensors})
    return fit


def _key(where: str, name: str) -> str:
    """Return a config key beside that of the path; empty if the path is no config key."""
    return f"{where.removesuffix('path')}{name}" if where.endswith(".path") else ""


def _fits_of_name(fits: Sequence[Fit], which: str, path: Path, where: str) -> list[Fit]:
    """Return the fits that `which` names.

    Raises:
        UserError: there are none.
    """
    if which in ("ema", "raw"):
        found = [fit for fit in fits if fit.is_average == (which == "ema")]
    else:
        found = [fit for fit in fits if which in (*fit.words, fit.label)]
    if not found:
        kinds = ["ema" if fit.is_average else "raw" for fit in fits]
        accepted = list(dict.fromkeys([*kinds, *(word for fit in fits for word in fit.words)]))
        raise UserError(
            f"{_key(where, 'state')}: found {which!r}; {path} has "
            f"{', '.join(accepted)}{nearest(which, accepted)}"
        )
    return found


def _fits(state: StateDict, net: nn.Module) -> list[Fit]:
    """Match a state dict's names to a net's.

    Candidates are the names as they are, without each prefix before some of the net's names, and
    under other projects' names for the net's parts.
    """
    expected = net.state_dict().keys()
    rules: Sequence[tuple[str, str]] = getattr(net, "other_names", ())
    prefixes = {""}
    for name in state.tensors:
        parts = name.split(".")
        for i in range(1, len(parts)):
            tail = ".".join(parts[i:])
            if tail in expected or _rename(tail, rules) in expected:
                prefixes.add(".".join(parts[:i]) + ".")
    found = []
    for prefix in sorted(prefixes, key=len):
        tails = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.tensors.items()
            if name.startswith(prefix)
        }
        ours = {_rename(tail, rules): tensor for tail, tensor in tails.items()}
        better = len(expected & ours.keys()) > len(expected & tails.keys())
        found.append(Fit(state, prefix, ours if better else tails))
    return found


def _fits_in_order(
    states: Sequence[StateDict],
    expected: Mapping[str, Tensor],
    head: Collection[str],
    path: Path,
    where: str,
) -> list[Fit]:
    """Match the state dicts of a file to a net's by the order of the tensors.

    Raises:
        UserError: none fits, or the file does not keep the order.
    """
    key = f"{_key(where, 'match')}: found 'order'"
    if path.suffix == ".safetensors":
        raise UserError(
            f"{key}, but {path.name} lists its tensors by name; accepted is a .pt or .pth file, "
            "which keeps the order of its net"
        )
    found: list[Fit] = []
    reasons = []
    for state in states:
        try:
            found.append(Fit(state, "", pair_in_order(state.tensors, expected, head)))
        except ValueError as error:
            reasons.append((len(state.tensors), str(error)))
    if not found:
        raise UserError(f"{key}, but the weights in {path} do not fit so: {max(reasons)[1]}")
    return found


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """Translate a tensor's name by the first matching rule."""
    for pattern, ours in rules:
        renamed, times = re.subn(pattern, ours, name)
        if times:
            return renamed
    return name


def _mismatches(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], classes: str
) -> list[str]:
    """Describe each mismatch with the net's tensors in a line.

    One more line is added if tensors differ in their number of rows only, so another number of
    classes may be the reason.
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
        advice = (
            f"; {classes.removesuffix('classes')}finetune=all trains it on the data, with a new "
            f"last layer; {classes} takes the names of the file's, in order, and then only the "
            "data's are kept"
        )
        lines.append(
            f"  the file is for {theirs} classes, the data has {ours}{advice if classes else ''}"
        )
    return lines


def _some(names: Collection[str]) -> str:
    """List the first ten, and the number of others."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(list(names)[:10]) + more


def _other_classes(found: Tensor, expected: Tensor) -> bool:
    return (
        0 < found.ndim == expected.ndim
        and len(found) != len(expected)
        and found.shape[1:] == expected.shape[1:]
    )
