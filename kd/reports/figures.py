"""Figures of one run's models: confusions, calibration, disagreement.

Each function takes plain arrays and returns a matplotlib `Figure`, drawn without pyplot's global
state. Colours are those of Okabe and Ito (2008), or run from light to dark in one hue, for colour
blindness and printers. Roles also differ in line style and hatching.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from kd.files.report_file import ReliabilityBin
from kd.measure.metrics import (
    CONFUSION,
    confusions,
    probability_metrics,
    row_blocks,
    single_answers,
    worst_of,
)
from kd.reports.fonts import give_letters
from kd.reports.palette import GRAY, ROLES, SKY


class PixelSource(Protocol):
    """Images of which some can be had as uint8 pixels [K, channels, height, width]."""

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The pixels of the positions [K]."""
        ...


NAMED = 20  # largest number of classes with numbers in the confusion matrix


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


def confusion_figure(labels: Tensor, chosen: Tensor, classes: Sequence[str], who: str) -> Figure:
    """Draw the confusion matrix; for more than 100 classes only the worst classes.

    Args:
        labels, chosen: true and predicted classes, int64 [N], from 0.
        classes: names.
        who: whose predictions they are, for the title.
    """
    draw = confusion_matrix if len(classes) <= CONFUSION else worst_classes
    return draw(labels, chosen, classes, who)


def worst_classes(labels: Tensor, chosen: Tensor, classes: Sequence[str], who: str) -> Figure:
    """Draw the classes with lowest recall, and the pairs confused most.

    Args:
        labels, chosen: true and predicted classes, int64 [N], from 0.
        classes: names.
        who: whose predictions they are, for the title.
    """
    worst, pairs = worst_of(labels, chosen, len(classes))
    figure, (left, right) = new_figure(11.0, 0.8 + 0.26 * max(len(worst), len(pairs), 4), columns=2)
    shares = [each.right / each.images for each in worst]
    words = [f" {each.right} of {each.images}" for each in worst]
    _ranked_bars(left, [classes[each.label] for each in worst], shares, words)
    left.set(xlim=(0, 1.15), xlabel="share of the class's images told right")
    left.set_title(f"{len(worst)} of {len(classes)} classes: found least often", fontsize=10)
    left.xaxis.set_major_formatter(PercentFormatter(1, 0))
    counts = [each.images for each in pairs]
    names = [
        f"{short_name(classes[each.label])} as {short_name(classes[each.chosen])}" for each in pairs
    ]
    _ranked_bars(right, names, counts, [f" {n}" for n in counts])
    right.set(xlim=(0, 1.15 * max(counts, default=1)), xlabel="images")
    right.set_title("Pairs confused most often", fontsize=10)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    hits = int((labels == chosen).sum())
    figure.suptitle(f"{who}: {hits} of {len(labels)} test images right", fontsize=12)
    return figure


def _ranked_bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], words: Sequence[str]
) -> None:
    """Draw horizontal bars from the top down, each with a text at its end."""
    axes.barh(range(len(names)), values, color=SKY, edgecolor="white")
    for y, (value, text) in enumerate(zip(values, words, strict=True)):
        axes.text(value, y, text, va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)


def confusion_matrix(labels: Tensor, chosen: Tensor, classes: Sequence[str], who: str) -> Figure:
    """Draw the confusion matrix: true class by row, predicted class by column, shares and counts.

    Args:
        labels, chosen: true and predicted classes, int64 [N], from 0.
        classes: names; for more than 20, a list of the most frequent confusions replaces the
            counts.
        who: whose predictions they are, for the title.
    """
    n = len(classes)
    counts = confusions(labels, chosen, n)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    side = min(12.0, max(4.2, 1.6 + 0.34 * n))
    figure, axes = new_figure(side + 0.8, side)
    # A square root makes the few errors of a good net visible.
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    bar = figure.colorbar(
        picture, ax=axes, shrink=0.8, format=PercentFormatter(1, 0), ticks=[0, 0.05, 0.2, 0.5, 1]
    )
    bar.set_label("share of the true class's images")
    names = [short_name(name) for name in classes]
    size = min(10.0, 48 * side / n)
    axes.set_xticks(
        range(n), names, fontsize=size, rotation=90 if n * max(map(len, names)) > 30 else 0
    )
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set_ylabel("true class")
    axes.set_xlabel(
        "chosen class" if n <= NAMED else f"chosen class\n\n{_confusions(counts, names)}"
    )
    axes.set_title(f"{who}: {np.trace(counts)} of {counts.sum()} test images right")
    for row, column in zip(*np.nonzero(counts), strict=True) if n <= NAMED else ():
        ink = "white" if shares[row, column] > 0.35 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", color=ink, fontsize=9)
    return figure


def _confusions(counts: NDArray[np.int64], names: Sequence[str]) -> str:
    """List the most frequent errors, three in a line."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    most = [divmod(int(i), len(counts)) for i in np.argsort(-wrong, axis=None, kind="stable")[:9]]
    words = [
        f"{names[row]} as {names[column]}: {wrong[row, column]}"
        for row, column in most
        if wrong[row, column] > 1
    ]
    lines = [";  ".join(words[i : i + 3]) for i in range(0, len(words), 3)]
    return (
        "\n".join(["most frequent confusions, in images:", *lines])
        if words
        else "no two classes are confused twice"
    )


def reliability_diagram(bins: Sequence[ReliabilityBin], who: str) -> Figure:
    """Draw accuracy against confidence, and the histogram of confidence.

    Args:
        bins: as in a report's `reliability`.
        who: whose they are, for the title, which also has the expected calibration error (Guo et
            al. 2017, eq. 3).
    """
    figure, (upper, lower) = new_figure(5.0, 6.0, rows=2, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="as sure as right")
    for i, each in enumerate(bins):
        count = each.count
        confidence = each.confidence
        accuracy = each.accuracy
        middle = (i + 0.5) / len(bins)
        width = 1 / len(bins)
        if accuracy is not None:
            interval = binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
            upper.bar(middle, accuracy, width, color=SKY, edgecolor="white")
            upper.plot(
                [confidence] * 2, [interval.low, interval.high], color="black", linewidth=1.2
            )
            upper.plot(confidence, accuracy, "o", color="black", markersize=4)
            lower.bar(middle, count, width, color=GRAY, edgecolor="white")
            lower.text(middle, count, f"{count}", ha="center", va="bottom", fontsize=8)
    upper.plot(
        [],
        [],
        "o-",
        color="black",
        markersize=4,
        linewidth=1.2,
        label="mean confidence; 95 % interval",
    )
    upper.set_title(f"{who}: {_calibration(bins)}")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share of images told right")
    lower.set(
        xlabel="confidence: probability of the chosen class",
        ylabel="test images (log)",
        yscale="log",
    )
    lower.set_ylim(0.7, 6 * sum(each.count for each in bins))
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.yaxis.set_minor_locator(NullLocator())
    upper.yaxis.set_major_formatter(PercentFormatter(1, 0))
    lower.xaxis.set_major_formatter(PercentFormatter(1, 0))
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _calibration(bins: Sequence[ReliabilityBin]) -> str:
    """State calibration error, accuracy and mean confidence, for the title."""
    full = [
        (each.count, each.confidence, each.accuracy)
        for each in bins
        if each.confidence is not None and each.accuracy is not None
    ]
    total = sum(count for count, _, _ in full)
    ece = sum(count * abs(accuracy - sure) for count, sure, accuracy in full) / total
    sure = sum(count * sure for count, sure, _ in full) / total
    right = sum(count * accuracy for count, _, accuracy in full) / total
    return (
        f"expected calibration error {ece:.4f}\n{100 * right:.2f} % right, mean confidence "
        f"{100 * sure:.2f} %"
    )


def disagreement(logits: Sequence[Tensor]) -> Tensor:
    """Measure how far several nets disagree on each image.

    The Jensen-Shannon divergence (Lin 1991, eq. 5.1), with equal weights.

    Args:
        logits: of each net, [N, C].

    Returns:
        float64 [N], in nats; from 0, if all agree, to the logarithm of the number of nets.
    """

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp(min=1e-30).log()).sum(1)

    found = torch.empty(len(logits[0]), dtype=torch.float64)
    for at, rows in row_blocks(*logits):
        each = [row.softmax(1) for row in rows]
        mean = sum(each[1:], each[0]) / len(each)
        own = sum((entropy(p) for p in each[1:]), entropy(each[0])) / len(each)
        found[at] = entropy(mean) - own
    return found


def disagreement_gallery(
    images: PixelSource,
    labels: Tensor,
    logits: Mapping[str, Tensor],
    classes: Sequence[str],
    count: int = 12,
) -> Figure:
    """Show the test images on which the models disagree most, with each model's probabilities.

    Args:
        images: as in `figures_of_run`.
        labels: int64 [N].
        logits: per role, [N, C].
        count: maximum number of images.
    """
    apart = disagreement(list(logits.values()))
    shown = apart.argsort(descending=True, stable=True)[:count]
    probabilities = {role: each[shown].double().softmax(1) for role, each in logits.items()}
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = new_figure(
        4.6 * columns, 1.85 * rows + 0.7, rows, 2 * columns, width_ratios=[1, 1.25] * columns
    )
    for axes in grid.flat[2 * len(shown) :]:
        axes.set_visible(False)
    for place, (i, pixels, picture, bars) in enumerate(
        zip(shown.tolist(), images[shown], grid.flat[0::2], grid.flat[1::2], strict=False)
    ):
        picture.imshow(to_picture(pixels), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        picture.set(xticks=[], yticks=[])
        picture.set_title(f"test image {i}", fontsize=9)
        picture.set_xlabel(f"{apart[i]:.2f} nats apart", fontsize=9)
        _bars(
            bars,
            {role: each[place].numpy() for role, each in probabilities.items()},
            int(labels[i]),
            classes,
        )
    figure.legend(
        *grid.flat[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10
    )
    figure.suptitle(
        "The test images on which the models disagree most, and their probabilities", fontsize=12
    )
    return figure


def _bars(
    axes: Axes, said: Mapping[str, NDArray[np.float64]], label: int, classes: Sequence[str]
) -> None:
    """Draw for one image each model's probabilities of the true, predicted and likely classes."""
    likely = np.argsort(-sum(said.values(), np.zeros(len(classes))), kind="stable").tolist()
    chosen = {int(each.argmax()) for each in said.values()}
    others = sorted((c for c in likely if c != label), key=lambda c: c not in chosen)
    shown = [label, *others[: max(2, len(chosen - {label}))]]
    for row, (role, each) in enumerate(said.items()):
        style = ROLES[role]
        thick = 0.84 / len(said)
        at = np.arange(len(shown)) + (row - (len(said) - 1) / 2) * thick
        axes.barh(
            at,
            each[shown],
            thick,
            label=role,
            color=style["color"],
            hatch=style["hatch"],
            edgecolor="white",
        )
        for y, share in zip(at, each[shown], strict=True):
            axes.text(share, y, f" {100 * share:.0f} %", va="center", fontsize=7)
    axes.set_yticks(
        range(len(shown)),
        [f"true: {short_name(classes[label])}", *(short_name(classes[c]) for c in shown[1:])],
    )
    axes.set(xlim=(0, 1.32), ylim=(len(shown) - 0.5, -0.5), xticks=[0, 0.5, 1])
    axes.tick_params(labelsize=9)
    axes.xaxis.set_major_formatter(PercentFormatter(1, 0))


def to_picture(pixels: Tensor) -> NDArray[np.uint8]:
    """Convert pixels [channels, height, width] for matplotlib: [height, width], or with [...,
    3].
    """
    picture: NDArray[np.uint8] = pixels.permute(1, 2, 0).numpy()
    return picture[:, :, 0] if picture.shape[2] == 1 else picture


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Plot validation accuracy, loss and mAP of each role by epoch; a level line without training.

    Without a validation part, accuracy and loss on the training views.

    Args:
        histories: per role one row per epoch with `epoch` (from 0), `val/acc` and `val/loss`.
    """
    several = any("val/map" in row for rows in histories.values() for row in rows)
    columns = 2 + several
    figure, panels = new_figure(4.8 * columns, 4.0, columns=columns)
    validated = any("val/acc" in row for rows in histories.values() for row in rows)
    part = "val" if validated else "train"
    losses = "cross-entropy in nats" if validated else "loss"
    shown = {f"{part}/acc": "accuracy", f"{part}/loss": losses}
    if several:
        shown["val/map"] = "mAP"
    for axes, (key, name) in zip(panels, shown.items(), strict=True):
        for role, rows in histories.items():
            style = {k: v for k, v in ROLES[role].items() if k != "hatch"}
            epochs = [row["epoch"] + 1 for row in rows]
            values = [row.get(key, math.nan) for row in rows]
            if len(rows) == 1:
                level = {"color": style["color"], "linestyle": style["linestyle"]}
                axes.axhline(values[0], **level, linewidth=1)
            axes.plot(
                epochs, values, **style, markersize=4, markevery=max(1, len(rows) // 10), label=role
            )
        axes.set(xlabel="epoch", ylabel=f"{'validation' if validated else 'training'} {name}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#dddddd", linewidth=0.6)
    for axes in panels[::2]:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[1].set_ylim(bottom=0)
    panels[0].legend()
    return figure


def image_grid(
    pictures: Sequence[NDArray[np.uint8]], titles: Sequence[str], columns: int
) -> Figure:
    """Show pictures of one size in rows, each with a title of up to three lines.

    All are in one `Axes`: with an `Axes` for each, drawing 50 takes seconds.

    Args:
        pictures: [height, width] or [height, width, 3] each.
        columns: most pictures in a row.
    """
    side = 1.2  # inches, of a picture; its column and its title:
    cell = 1.35
    above = 0.52
    columns = min(columns, len(pictures))
    tall = side * pictures[0].shape[0] / pictures[0].shape[1]
    width = cell * columns
    height = (tall + above) * -(-len(pictures) // columns)
    figure, axes = new_figure(width, height)
    axes.axis("off")
    for place, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        row, column = divmod(place, columns)
        left = cell * column + (cell - side) / 2
        top = (tall + above) * row + above
        axes.imshow(
            picture,
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="nearest",
            aspect="auto",
            extent=(left, left + side, top + tall, top),
        )
        axes.text(left + side / 2, top - 0.04, title, ha="center", va="bottom", fontsize=8)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    return figure


def as_array(figure: Figure) -> NDArray[np.uint8]:
    """Return the figure's pixels: uint8 [height, width, 3]."""
    settle(figure)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def settle(figure: Figure) -> None:
    """Compute a figure's layout once.

    Matplotlib would otherwise repeat it at each drawing. Later additions may lack space.
    """
    give_letters(figure)
    if engine := figure.get_layout_engine():
        for text in (
            text for axes in figure.axes for text in axes.texts if not isinstance(text, Annotation)
        ):
            # It lies within its axes, so its extent does not matter
            text.set_in_layout(False)
        engine.execute(figure)
        # "none" would leave a placeholder that draws twice
        figure.set_layout_engine(None)


def export(figure: Figure, path: Path) -> None:
    """Write the figure by its ending: `.png` with 150 dots per inch, or `.svg`.

    Raises:
        ValueError: another ending.
    """
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path}: accepted are .png and .svg")
    settle(figure)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Create a figure of this size in inches, with its axes."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    keys = {k: v for k, v in options.items() if k.endswith("_ratios")}
    rest = {k: v for k, v in options.items() if k not in keys}
    return figure, figure.subplots(rows, columns, **rest, **keys)


def short_name(name: str) -> str:
    """Shorten a class's name to 18 letters, escaped for matplotlib."""
    # Else it would start a formula
    return (name if len(name) <= 18 else f"{name[:17]}…").replace("$", "\\$")
