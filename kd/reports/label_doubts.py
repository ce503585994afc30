"""Training images whose label the teacher doubts most, which are often labelled wrongly."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from kd.data.base import DataModule
from kd.data.images import Images
from kd.files.report_file import DoubtedLabel, LabelDoubts, Report
from kd.files.store import StageResult
from kd.reports.figures import short_name
from kd.reports.gallery import image_grid, to_picture
from kd.stages.result import logits_of

SHOWN = 50
PIXELS = 2**25  # of all images together that the teacher is asked about: 32,768 of 32x32
LISTED = 10  # in report.md
COLUMNS = 10  # of pictures


def label_doubts(teacher: StageResult | None, data: DataModule) -> LabelDoubts | None:
    """Ask the teacher about the training images, as they are, and rank the labels that it doubts.

    Of many pixels an even part is asked about. The answers are stored with the teacher.

    Returns:
        None without a teacher for all of the data's classes.
    """
    if teacher is None:
        return None
    images, places = sample(data)
    logits = logits_of(teacher, data, images)
    if logits.shape[1] != len(data.classes):
        return None
    several = images.multilabel
    ranked = rank_single_labels if several else rank_doubts
    return LabelDoubts(
        asked=len(images),
        most=[
            DoubtedLabel(
                place=places[i],
                name=images.names[i],
                label=chosen if several else int(images.labels[i]),
                present=bool(images.labels[i, chosen]) if several else None,
                chosen=chosen,
                label_probability=own,
                chosen_probability=other,
            )
            for i, chosen, own, other in ranked(logits, images.labels)
        ],
    )


def sample(data: DataModule) -> tuple[Images, list[int]]:
    """Return the training images that the teacher is asked about, and their places in train."""
    train = data.split.train
    count, _, height, width = train.pixels.shape
    few = min(count, max(1, PIXELS // (height * width)))
    places = [i * count // few for i in range(few)]
    return (train if few == count else train.at(places)), places


def rank_doubts(
    logits: Tensor, labels: Tensor, most: int = SHOWN
) -> list[tuple[int, int, float, float]]:
    """Rank labelled images that a net puts into another class, the most certain one first.

    Args:
        logits: [N, C].
        labels: int64 [N], negative for none.
        most: how many to return.

    Returns:
        for each its position, the class chosen, and the probabilities of label and choice. The
        order is by the difference of the two.
    """
    p = logits.double().softmax(1)
    sure, chosen = p.max(1)
    own = p.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    apart = (sure - own).where((labels >= 0) & (chosen != labels), -1.0)
    order = apart.argsort(descending=True, stable=True)[:most].tolist()
    return [
        (i, int(chosen[i]), float(own[i]), float(sure[i])) for i in order if float(apart[i]) >= 0
    ]


def rank_single_labels(
    logits: Tensor, labels: Tensor, most: int = SHOWN
) -> list[tuple[int, int, float, float]]:
    """Rank images by the one label of each, there or missing, that a net is surest to be wrong.

    Args:
        logits: [N, C].
        labels: 0 and 1, [N, C]; rows of -1 for unlabelled images.
        most: how many to return.

    Returns:
        for each its position, the class of that label, and the probabilities of what the label
        says and of the opposite.
    """
    p = logits.double().sigmoid()
    says = p.where(labels > 0, 1 - p)  # the probability of what each label says
    apart = (1 - 2 * says).where((labels >= 0) & (says < 0.5), -1.0)
    worst, label = apart.max(1)
    order = worst.argsort(descending=True, stable=True)[:most].tolist()
    return [
        (i, int(label[i]), float(says[i, label[i]]), float(1 - says[i, label[i]]))
        for i in order
        if float(worst[i]) >= 0
    ]


def _words(doubt: DoubtedLabel, classes: Sequence[str]) -> tuple[str, str]:
    """Return what the label says and what the teacher says."""
    label = classes[doubt.label]
    if doubt.present is None:
        return label, classes[doubt.chosen]
    return (label, f"no {label}") if doubt.present else (f"no {label}", label)


def doubts_figure(doubts: LabelDoubts, data: DataModule) -> Figure | None:
    """Draw the images with their label and what the teacher sees; None if it doubts none."""
    if not doubts.most:
        return None
    pixels = data.split.train.pixels
    pictures = []
    titles = []
    for each in doubts.most:
        (image,) = pixels[slice(each.place, each.place + 1)]
        pictures.append(to_picture(image))
        label, chosen = map(short_name, _words(each, data.classes))
        titles.append(f"{label}?\n→ {chosen}\n{100 * each.chosen_probability:.0f} %")
    return image_grid(pictures, titles, COLUMNS)


def doubt_lines(report: Report) -> list[str]:
    """Write what the teacher doubts for report.md, the first ones by name."""
    classes = report.data.classes
    if not (doubts := report.doubts):
        return []
    if not doubts.most:
        return [f"- The teacher agrees with the label of all {doubts.asked:,} images it was asked."]
    first = doubts.most[:LISTED]
    listed = "; ".join(
        f"{each.name} ({label}, says {chosen} {100 * each.chosen_probability:.0f} %)"
        for each in first
        for label, chosen in [_words(each, classes)]
    )
    return [
        f"- Of {doubts.asked:,} training images that the teacher was asked about, it doubts the "
        f"labels of these most: {listed}. report.json has {len(doubts.most)}, report.html their "
        "pictures. Labels that it learned by heart it does not doubt."
    ]
