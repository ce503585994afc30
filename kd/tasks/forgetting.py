"""Forgetting: the accuracy matrix over tasks, and measures from it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kd.files.report_file import TaskAccuracies

Matrix = list[list[float]]  # row i: after task i, on each of the tasks up to it


def evaluation(
    scores: Sequence[Tensor], labels: Tensor, sizes: Sequence[int], told: bool
) -> TaskAccuracies:
    """Compute all measures of one protocol; accuracies and their differences are fractions.

    Args:
        scores: after each task, [N, classes seen so far]; the largest is the prediction.
        labels: of the N images of all tasks, as positions in the class order, int64 [N].
        sizes: number of classes of each task.
        told: True gives the net the task of each image, so it predicts among that task's classes
            (task-incremental). False lets it predict among all classes seen so far
            (class-incremental).

    Returns:
        a mapping of names to values:
        - `matrix`, after task i on task j <= i;
        - `after`, after each task on all images of the classes seen so far;
        - `average` of those over all tasks (average incremental accuracy, Rebuffi et al. 2017);
        - `final`, the last of them;
        - `forgetting` (Chaudhry et al. 2018), the mean drop from each task's earlier best to the
          end;
        - `backward_transfer` (Lopez-Paz & Ranzato 2017), the mean change from when it was just
          learned to the end.

        The last two exclude the last task and are None for a single task.
    """
    matrix, after = _matrix(scores, labels, sizes, told)
    last = matrix[-1][:-1]
    best = [max(row[j] for row in matrix[j:-1]) for j in range(len(last))]
    learned = [matrix[j][j] for j in range(len(last))]
    return TaskAccuracies(
        matrix=matrix,
        after=after,
        average=_mean(after),
        final=after[-1],
        forgetting=_mean([b - a for a, b in zip(last, best, strict=True)]),
        backward_transfer=_mean([a - b for a, b in zip(last, learned, strict=True)]),
    )


def _matrix(
    scores: Sequence[Tensor], labels: Tensor, sizes: Sequence[int], told: bool
) -> tuple[Matrix, list[float]]:
    """Compute the accuracy on each task after each, and on all images seen so far."""
    task_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    mine = task_of[labels]
    matrix = []
    after = []
    for i, said in enumerate(scores):
        if told:
            said = said.masked_fill(task_of[: said.shape[1]] != mine[:, None], -torch.inf)
        right = (said.argmax(1) == labels).double()
        matrix.append([float(right[mine == j].mean()) for j in range(i + 1)])
        after.append(float(right[mine <= i].mean()))
    return matrix, after


def _mean(values: Sequence[float]) -> float | None:
    # Not -0.0 or a rounding residue
    return round(sum(values) / len(values), 12) + 0.0 if values else None
