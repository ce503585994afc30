"""What a net that learned in tasks still knows: the accuracy matrix, and what is read off it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Matrix = list[list[float]]  # row i: after task i, on each of the tasks up to it


def evaluation(
    scores: Sequence[Tensor], labels: Tensor, sizes: Sequence[int], told: bool
) -> dict[str, Any]:
    """All measures of one kind of evaluation; accuracies and their differences are fractions.

    Args:
        scores: after each task, [N, classes seen so far]; the largest is the answer.
        labels: of the N images of all tasks, as places in the order that the classes came in.
        sizes: number of classes of each task.
        told: whether the net is told which task an image is of, and chooses among its classes alone
            (task-incremental); or has to choose among all classes seen so far (class-incremental).

    Returns:
        `matrix`, after task i on task j <= i; `after`, after each task on all images of the classes
        seen so far; `average` of those over all tasks, the first included (average incremental
        accuracy, Rebuffi et al. 2017); `final`, the last of them; `forgetting` (Chaudhry et al.
        2018): how much worse each task but the last is in the end than it was at best before, on
        average; `backward_transfer` (Lopez-Paz & Ranzato 2017): how much better it is in the end
        than when it was just learned, on average. These two are None where there is but one task.
    """
    matrix, after = _matrix(scores, labels, sizes, told)
    last = matrix[-1][:-1]
    best = [max(row[j] for row in matrix[j:-1]) for j in range(len(last))]
    learned = [matrix[j][j] for j in range(len(last))]
    return {
        "matrix": matrix,
        "after": after,
        "average": _mean(after),
        "final": after[-1],
        "forgetting": _mean([b - a for a, b in zip(last, best, strict=True)]),
        "backward_transfer": _mean([a - b for a, b in zip(last, learned, strict=True)]),
    }


def _matrix(
    scores: Sequence[Tensor], labels: Tensor, sizes: Sequence[int], told: bool
) -> tuple[Matrix, list[float]]:
    """The accuracy on each task after each, and on all images seen so far."""
    task_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    mine = task_of[labels]
    matrix, after = [], []
    for i, said in enumerate(scores):
        if told:
            said = said.masked_fill(task_of[: said.shape[1]] != mine[:, None], -torch.inf)
        right = (said.argmax(1) == labels).double()
        matrix.append([float(right[mine == j].mean()) for j in range(i + 1)])
        after.append(float(right[mine <= i].mean()))
    return matrix, after


def _mean(values: Sequence[float]) -> float | None:
    return (
        round(sum(values) / len(values), 12) + 0.0 if values else None
    )  # not -0.0, nor what rounding left of 0
