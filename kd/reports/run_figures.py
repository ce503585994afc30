"""All figures of a run."""

from collections.abc import Iterator, Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from kd.measure.metrics import probability_metrics, single_answers
from kd.reports.figures import confusion_figure, learning_curves, reliability_diagram
from kd.reports.gallery import PixelSource, disagreement_gallery


def figures_of_run(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    logits: Mapping[str, Tensor],
    images: PixelSource,
    labels: Tensor,
    classes: Sequence[str],
) -> Iterator[tuple[str, Figure]]:
    """Iterate over all figures of a run, with their names.

    Args:
        histories: per role its epochs' metrics, as in a stage's record.
        logits: per role, [N, C] for the test images.
        images: the test images; `images[i]` are the uint8 pixels [K, channels, height, width] at
            positions i [K].
        labels: their classes, int64 [N]; of several labels [N, C], which have curves and
            reliability only.
        classes: names.
    """
    yield "learning_curves", learning_curves(histories)
    if labels.ndim == 2:  # the others are of one class an image
        for role, each in logits.items():
            bins = probability_metrics(*single_answers(each, labels)).reliability
            yield f"reliability/{role}", reliability_diagram(bins, role)
        return
    for role, each in logits.items():
        yield f"confusion/{role}", confusion_figure(labels, each.argmax(1), classes, role)
        bins = probability_metrics(each, labels).reliability
        yield f"reliability/{role}", reliability_diagram(bins, role)
    if len(logits) > 1:
        yield "disagreement", disagreement_gallery(images, labels, logits, classes)
