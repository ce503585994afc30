"""Weights whose names differ from the net's: its tensors and the file's, paired in order."""

from collections.abc import Collection, Mapping
from itertools import zip_longest

from torch import Tensor

COUNTER = "num_batches_tracked"  # of batch norm; missing in files older than PyTorch 0.4.1
# Ends of names that mean the same everywhere; equal shapes do not tell a mean from a variance
KINDS = {"weight", "bias", "running_mean", "running_var"}


def pair_in_order(
    theirs: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return a file's tensors under a net's names, in the order in which both list them.

    The counters of batch norms are left out on both sides. Names that both end in one of `KINDS`
    must end in the same one. The last layer may have another number of rows, or be missing.

    Args:
        theirs: the file's tensors by its names.
        expected: the net's, by its names.
        head: names of the net's last layer, which a file may lack.

    Raises:
        ValueError: they do not fit; gives both counts, and the first pair that differs.
    """
    theirs = _without_counters(theirs)
    ours = _without_counters(expected)
    if head and len(theirs) == len(ours) - len(head):
        ours = {name: tensor for name, tensor in ours.items() if name not in head}
    rows = (_last_rows(theirs), _last_rows(ours))
    for fitting, (one, other) in enumerate(zip_longest(theirs.items(), ours.items())):
        if not _fits(one, other, rows):
            raise ValueError(
                f"the file has {len(theirs)} tensors and the net {len(ours)}, batch norm's "
                f"counters left out; the first {fitting} fit in order, then {_words(one)} in "
                f"the file meets {_words(other)} in the net"
            )
    return dict(zip(ours, theirs.values(), strict=True))


def _without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}


def _last_rows(tensors: Mapping[str, Tensor]) -> int:
    last = list(tensors.values())[-1:]
    return len(last[0]) if last and last[0].ndim else 0


def _fits(
    theirs: tuple[str, Tensor] | None, ours: tuple[str, Tensor] | None, last_rows: tuple[int, int]
) -> bool:
    if theirs is None or ours is None:
        return False
    name, found = theirs
    our_name, wanted = ours
    ends = {name.rpartition(".")[2], our_name.rpartition(".")[2]}
    if len(ends) == 2 and ends <= KINDS:
        return False
    if found.shape == wanted.shape:
        return True
    # The last layer's rows are compared by who loads it, as where names are the same
    rows = found.shape[:1] + wanted.shape[:1]
    return tuple(rows) == last_rows and found.shape[1:] == wanted.shape[1:]


def _words(item: tuple[str, Tensor] | None) -> str:
    return f"{item[0]} {list(item[1].shape)}" if item else "nothing more"
