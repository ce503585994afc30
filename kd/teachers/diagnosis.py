"""Value of a teacher's soft labels: accuracy on validation, entropy, stability over views."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SURE = 0.02  # share of the maximal entropy; below it soft labels are nearly one-hot
BY_ORDER = 0.1  # accuracy gain from reordering the outputs that is worth a warning
LISTED = 20  # classes listed in a message
BY_HEART = 0.03  # excess of validation over test accuracy that suggests memorised images
UNSTEADY = 0.2  # share of the maximal entropy; above it the label of an image depends on its crop


@dataclass(frozen=True)
class TeacherDiagnosis:
    """Teacher logits, from which the measures follow at any temperature.

    Attributes:
        logits: [N, C], of the unaugmented validation images.
        labels: int64 [N], of those.
        views: [2, n, C], two unmixed views each of some training images.
        view_labels: int64 [n], of those; -1 where the student has none.
        seen: [n, C], one view of each as the student sees it, mixed if views mix.
    """

    logits: Tensor
    labels: Tensor
    views: Tensor
    view_labels: Tensor
    seen: Tensor

    def at(self, temperature: float) -> dict[str, float]:
        """Compute the measures at a temperature > 0.

        Returns:
            a mapping of names to values:
            - `accuracy` on validation, a share;
            - `entropy` of the soft labels of training views, nats per image;
            - `label_probability`, their mean probability of the true class;
            - `instability`, the symmetric mean Kullback-Leibler divergence between two views of an
              image, in nats.
        """
        log_p = (self.seen.double() / temperature).log_softmax(1)
        a, b = (self.views.double() / temperature).log_softmax(2)
        return {
            "accuracy": float((self.logits.argmax(1) == self.labels).double().mean()),
            "entropy": float(-(log_p.exp() * log_p).sum(1).mean()),
            "label_probability": self._label_probability((a.exp() + b.exp()) / 2, temperature),
            "instability": float(((a.exp() - b.exp()) * (a - b)).sum(1).mean() / 2),
        }

    def _label_probability(self, views: Tensor, temperature: float) -> float:
        """Compute the mean probability of the true class on labelled views [n, C], or
        validation.
        """
        known = self.view_labels >= 0
        labels = self.view_labels[known]
        given = views[known]
        if not len(labels):
            labels = self.labels
            given = (self.logits.double() / temperature).softmax(1)
        return float(given.gather(1, labels[:, None]).mean())


def knows_validation(
    val: tuple[float, float, float],
    test: tuple[float, float, float],
    baseline_gap: float,
    entropy: float | None,
    classes: int,
) -> str | None:
    """Warn if a loaded teacher seems to have been trained on the validation images; None otherwise.

    Args:
        val, test: its accuracy and the ends of the 95 % interval; shares.
        baseline_gap: validation minus test accuracy of the net trained here, which saw neither.
        entropy: of its soft labels on training views, in nats; None if nothing was distilled.
    """
    gap = val[0] - test[0] - max(baseline_gap, 0.0)
    if gap < BY_HEART or val[1] <= test[2]:
        return None
    found = (
        "The teacher has probably been trained on the validation images: it is right on "
        f"{100 * val[0]:.2f} % of them and on {100 * test[0]:.2f} % of the test images. Its "
        "accuracy and agreement on validation are those of memorised images, and so are its "
        "soft labels on the training images"
    )
    if entropy is not None:
        largest = math.log(classes)
        worth = ", next to one-hot" if entropy < SURE * largest else ""
        found += (
            f": on training views their entropy is {entropy:.3f} of at most {largest:.2f} "
            f"nats{worth}"
        )
    return (
        f"{found}. Harder views (data/augment=strong, which mixes images), a higher "
        "temperature, or images that it has not seen (data.unlabeled) make them say more."
    )


def other_order(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> str | None:
    """Warn if a net's outputs seem to be in another class order; None otherwise.

    The order is the most accurate one (linear assignment on the confusion matrix), found on half of
    the images. It counts if it is better on the other half by `BY_ORDER` and beyond chance.

    Args:
        logits: [N, C], of validation images.
        labels: int64 [N].
    """
    chosen = logits.argmax(1)
    found = _assignment(chosen[::2], labels[::2], len(classes))
    right = chosen == labels
    in_order = found[labels] == chosen
    gained = (in_order.double() - right.double())[1::2]
    if not len(gained):
        return None
    error = float(gained.std(correction=0)) / math.sqrt(len(gained))
    if float(gained.mean()) < max(BY_ORDER, 3 * error):
        return None
    order = _assignment(chosen, labels, len(classes))
    names = [classes[int(i)] for i in order.argsort()]
    listed = json.dumps(names[:LISTED], ensure_ascii=False)
    listed = listed if len(names) <= LISTED else f"{listed[:-1]}, ...]"
    return (
        "The teacher's outputs seem to be in another order than the data's classes: it is "
        f"right on {100 * float(right.double().mean()):.1f} % of the validation images as "
        f"they are, and on {100 * float((order[labels] == chosen).double().mean()):.1f} % "
        f"with 'teacher.classes={listed}'. Give the classes in the teacher's own order "
        "(teacher.classes takes a list or a file)."
    )


def _assignment(chosen: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Assign an output to each class for the highest accuracy.

    Args:
        chosen, labels: predicted and true class, int64 [N].

    Returns:
        int64 [classes].
    """
    from scipy.optimize import linear_sum_assignment

    counts = torch.bincount(labels * classes + chosen, minlength=classes**2)
    return torch.as_tensor(linear_sum_assignment(-counts.view(classes, classes).numpy())[1]).long()


def concerns(teacher: Mapping[str, float], classes: int, baseline: float | None) -> list[str]:
    """List problems of a teacher, each with a remedy; empty if there are none.

    Args:
        teacher: as from `TeacherDiagnosis.at`.
        baseline: validation accuracy of the small net trained alone, a share; None if there is
            none.
    """
    found = []
    largest = math.log(classes)
    if baseline is not None and teacher["accuracy"] < baseline:
        found.append(
            f"The teacher is right on {100 * teacher['accuracy']:.1f} % of the validation "
            f"images, the baseline on {100 * baseline:.1f} %: train the teacher longer "
            "(teacher.epochs), take a larger one, or lower alpha."
        )
    if teacher["entropy"] < SURE * largest:
        found.append(
            f"The teacher is so sure that its soft labels say little more than the labels (entropy "
            f"{teacher['entropy']:.3f} of at most {largest:.2f} nats): raise the temperature."
        )
    if teacher["instability"] > UNSTEADY * largest:
        found.append(
            "The teacher changes its mind between two views of an image (divergence "
            f"{teacher['instability']:.2f} nats): lower alpha, augment less "
            "(data/augment=light), or train the teacher longer."
        )
    return found
