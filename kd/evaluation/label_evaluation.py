"""`kd.evaluate` where an image may have several labels: thresholds per class, mAP and F1."""

from collections.abc import Mapping

import torch
from sklearn.metrics import f1_score
from torch import Tensor

from kd.files.evaluation_file import LabelMetrics, ModelThreshold, PairedDifference, TunedLabels
from kd.measure.label_metrics import (
    average_precisions,
    interval,
    mean_average_precision,
    resample,
    with_both,
)
from kd.measure.metrics import decisions
from kd.measure.operating_point import at_threshold, by_f1


def evaluate_labels(
    logits: Tensor, labels: Tensor, calibration: tuple[Tensor, Tensor] | None
) -> LabelMetrics:
    """Compute what `kd.measure.metrics.summary` has not: intervals, and thresholds per class.

    Args:
        logits: [N, C].
        labels: 0 and 1, [N, C].
        calibration: logits and labels of the validation images; None chooses no thresholds.
    """
    found = resample(logits, decisions(logits, True), labels)
    return LabelMetrics(
        map_ci95=interval(found.map),
        f1_macro_ci95=interval(found.f1_macro),
        f1_micro_ci95=interval(found.f1_micro),
        average_precision=average_precisions(logits, labels),
        tuned=_choose_thresholds(logits, labels, *calibration) if calibration else None,
    )


def _choose_thresholds(
    logits: Tensor, labels: Tensor, on_val: Tensor, val_labels: Tensor
) -> TunedLabels:
    """Choose each class's threshold by its F1 on validation; evaluate there and on these images."""
    points: list[ModelThreshold | None] = []
    chosen = decisions(logits, True)
    for c in range(labels.shape[1]):
        there = val_labels[:, c] > 0
        if not there.any():  # it keeps 1/2
            points.append(None)
            continue
        scores = logits[:, c].double()
        threshold = by_f1(on_val[:, c].double(), there)
        chosen[:, c] = scores >= threshold
        points.append(
            ModelThreshold(
                threshold=float(torch.tensor(threshold, dtype=torch.float64).sigmoid()),
                validation=at_threshold(on_val[:, c].double(), there, threshold),
                test=at_threshold(scores, labels[:, c] > 0, threshold),
            )
        )
    found = resample(logits, chosen, labels)
    both = with_both(labels)
    truth = (labels > 0).int().numpy()
    said = chosen.int().numpy()
    macro = f1_score(truth[:, both], said[:, both], average="macro", zero_division=0)
    return TunedLabels(
        per_class=points,
        f1_macro=float(macro) if both else None,
        f1_macro_ci95=interval(found.f1_macro),
        f1_micro=float(f1_score(truth, said, average="micro", zero_division=0)),
        f1_micro_ci95=interval(found.f1_micro),
    )


def with_map(
    pair: PairedDifference, logits: Mapping[str, Tensor], labels: Tensor
) -> PairedDifference:
    """Add the difference in mAP, with its interval, to that in accuracy.

    Args:
        logits: by role, [N, C].
        labels: 0 and 1, [N, C].
    """
    both = [logits[role] for role in (pair.first, pair.second)]
    means = [mean_average_precision(each, labels) for each in both]
    draws = [resample(each, decisions(each, True), labels).map for each in both]
    if means[0] is None or means[1] is None:
        return pair
    more = {
        "map_difference": means[0] - means[1],
        "map_difference_ci95": interval(draws[0] - draws[1]),
    }
    return pair.model_copy(update=more)
