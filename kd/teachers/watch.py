"""What a teacher's soft labels are worth: how right, how sure, and how steady it is on validation images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SURE = 0.02  # of the largest entropy there can be: below, soft labels are next to one-hot
UNSTEADY = 0.2  # of the same: above, the label of an image depends on how it was cropped


@dataclass(frozen=True)
class Watched:
    """A teacher's logits on validation images, from which all the rest follows at any temperature.

    Attributes:
        logits: [N, C], of the images as they are.
        labels: int64 [N].
        views: [2, n, C], of two views each of some of the images.
    """

    logits: Tensor
    labels: Tensor
    views: Tensor

    def at(self, temperature: float) -> dict[str, float]:
        """The measures at a temperature.

        Returns:
            `accuracy`, a share; `entropy` of the soft labels, in nats per image; `label_probability`, what they give
            to the true class, on average; `instability`, the mean Kullback-Leibler divergence in nats between the
            soft labels of two views of an image, both ways averaged.
        """
        log_p = (self.logits.double() / temperature).log_softmax(1)
        a, b = (self.views.double() / temperature).log_softmax(2)
        return {
            "accuracy": float((self.logits.argmax(1) == self.labels).double().mean()),
            "entropy": float(-(log_p.exp() * log_p).sum(1).mean()),
            "label_probability": float(log_p.exp().gather(1, self.labels[:, None]).mean()),
            "instability": float(((a.exp() - b.exp()) * (a - b)).sum(1).mean() / 2),
        }


def concerns(teacher: Mapping[str, float], classes: int, baseline: float | None) -> list[str]:
    """What should worry the user about a teacher, each with what may help; empty where nothing does.

    Args:
        teacher: as from `Watched.at`.
        baseline: validation accuracy of the small net trained alone, a share; None where there is none.
    """
    found, largest = [], math.log(classes)
    if baseline is not None and teacher["accuracy"] < baseline:
        found.append(
            f"The teacher is right on {100 * teacher['accuracy']:.1f} % of the validation images, the baseline on "
            f"{100 * baseline:.1f} %: train the teacher longer (teacher.epochs), take a larger one, or lower alpha."
        )
    if teacher["entropy"] < SURE * largest:
        found.append(
            f"The teacher is so sure that its soft labels say little more than the labels (entropy "
            f"{teacher['entropy']:.3f} of at most {largest:.2f} nats): raise the temperature."
        )
    if teacher["instability"] > UNSTEADY * largest:
        found.append(
            f"The teacher changes its mind between two views of an image (divergence {teacher['instability']:.2f} "
            "nats): lower alpha, augment less (data/augment=light), or train the teacher longer."
        )
    return found
