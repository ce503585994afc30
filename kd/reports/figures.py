"""Figures of one run's models: confusions, calibration, learning curves.

Each function takes plain arrays and returns a matplotlib `Figure`, drawn without pyplot's global
state. Colours are those of Okabe and Ito (2008), or run from light to dark in one hue, for colour
blindness and printers. Roles also differ in line style and hatching.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
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
    worst_of,
)
from kd.reports.fonts import give_letters
from kd.reports.palette import GRAY, ROLES, SKY

NAMED = 20  # largest number of classes with numbers in the confusion matrix


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


_drawn: WeakKeyDictionary[Figure, NDArray[np.uint8]] = WeakKeyDictionary()


def as_array(figure: Figure) -> NDArray[np.uint8]:
    """Return the figure's pixels, uint8 [height, width, 3]; a figure is drawn once."""
    if figure not in _drawn:
        settle(figure)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        _drawn[figure] = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
    return _drawn[figure]


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
