"""Errors on classes that a net never saw in training, and a bias that corrects for them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kd.files.report_file import OmittedCounts, OmittedErrors


def bias_for(logits: Tensor, labels: Tensor, omitted: Sequence[int]) -> float:
    """Find the bias of the omitted classes' logits with the best accuracy.

    Hinton et al. 2015, section 3: a net that never saw a class learns much too low a bias for it.
    Among equally good biases 0 is taken, or the middle of their interval nearest to it.

    Args:
        logits: [N, C].
        labels: int64 [N].
        omitted: labels of those classes.
    """
    scores = logits.double()
    is_omitted = torch.zeros(logits.shape[1], dtype=torch.bool)
    is_omitted[list(omitted)] = True
    best_omitted, choice_omitted = scores.masked_fill(~is_omitted, -torch.inf).max(1)
    best_shown, choice_shown = scores.masked_fill(is_omitted, -torch.inf).max(1)
    needed = (best_shown - best_omitted).numpy()  # above this bias an omitted class is predicted
    edges = np.unique(needed)
    biases = np.concatenate([[edges[0] - 1], (edges[:-1] + edges[1:]) / 2, [edges[-1] + 1]])
    gained = np.sort(needed[(choice_omitted == labels).numpy()])  # right above it
    lost = np.sort(needed[(choice_shown == labels).numpy()])  # right below it
    right = np.searchsorted(gained, biases) + len(lost) - np.searchsorted(lost, biases)
    if right[np.searchsorted(edges, 0)] == right.max():
        return 0.0
    best = biases[right == right.max()]
    return float(best[np.abs(best).argmin()])


def omitted_errors(
    val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], omitted: Sequence[int]
) -> OmittedErrors:
    """Count test errors, all and on omitted classes, before and after the correction.

    Args:
        val, test: logits [N, C] and labels [N]; the bias is chosen on `val`.
    """
    bias = bias_for(*val, omitted)
    shift = torch.zeros(test[0].shape[1])
    shift[list(omitted)] = bias
    theirs = torch.isin(test[1], torch.tensor(list(omitted)))

    def errors(logits: Tensor) -> OmittedCounts:
        wrong = logits.argmax(1) != test[1]
        return OmittedCounts(all=int(wrong.sum()), omitted=int((wrong & theirs).sum()))

    return OmittedErrors(
        images=OmittedCounts(all=len(theirs), omitted=int(theirs.sum())),
        errors=errors(test[0]),
        bias=bias,
        errors_corrected=errors(test[0] + shift),
    )
