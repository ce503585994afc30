"""Pictures of single images: those on which the models disagree, and grids with titles.

All of a figure's images are in one `Axes`, whose unit is an inch: with an `Axes` for each, drawing
takes seconds.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from kd.measure.metrics import row_blocks
from kd.reports.figures import new_figure, short_name
from kd.reports.palette import LIGHT, ROLES

# Inches in the gallery: an image's cell with its bars, side and place of the image, the bars, and
# the length of a probability of 1
CELL = (4.5, 2.0)
SIDE = 1.45
AT = (0.1, 0.27)
BARS = 2.55
ONE = 1.4


class PixelSource(Protocol):
    """Images of which some can be had as uint8 pixels [K, channels, height, width]."""

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The pixels of the positions [K]."""
        ...


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
        images: as in `kd.reports.run_figures.figures_of_run`.
        labels: int64 [N].
        logits: per role, [N, C].
        count: maximum number of images.
    """
    apart = disagreement(list(logits.values()))
    order = apart.argsort(descending=True, stable=True)[:count]
    said = {role: each[order].double().softmax(1).numpy() for role, each in logits.items()}
    columns = min(3, len(order))
    figure, axes = _sheet(CELL[0] * columns, CELL[1] * -(-len(order) // columns))
    names = []  # of one image each: the classes shown, then where their bars are
    places = []
    for place, (i, pixels) in enumerate(zip(order.tolist(), images[order], strict=True)):
        row, column = divmod(place, columns)
        left = CELL[0] * column
        top = CELL[1] * row + AT[1]
        picture = to_picture(pixels)
        tall, wide = (SIDE * each / max(picture.shape[:2]) for each in picture.shape[:2])
        centre = left + AT[0] + SIDE / 2
        _put(axes, picture, centre - wide / 2, top + (SIDE - tall) / 2, wide, tall)
        axes.text(centre, top - 0.04, f"test image {i}", ha="center", fontsize=9)
        words = f"{apart[i]:.2f} nats apart"
        axes.text(centre, top + SIDE + 0.04, words, ha="center", va="top", fontsize=9)
        shown = _classes_of({role: each[place] for role, each in said.items()}, int(labels[i]))
        step = SIDE / len(shown)
        for at, label in enumerate(shown):
            name = f"{'' if at else 'true: '}{short_name(classes[label])}"
            y = top + (at + 0.5) * step
            axes.text(left + BARS - 0.06, y, name, ha="right", va="center", fontsize=9)
        names.append(shown)
        places.append((left + BARS, top + np.arange(0.5, len(shown)) * step, step))
    _bars(axes, said, names, places)
    figure.legend(loc="outside lower center", ncols=3, fontsize=10)
    figure.suptitle(
        "The test images on which the models disagree most, and their probabilities", fontsize=12
    )
    return figure


def _classes_of(said: Mapping[str, NDArray[np.float64]], label: int) -> list[int]:
    """Return the true, the predicted and the likely classes of an image, the true one first.

    Args:
        said: each model's probabilities [C].
    """
    likely = np.argsort(-sum(said.values(), np.zeros(1)), kind="stable").tolist()
    chosen = {int(each.argmax()) for each in said.values()}
    others = sorted((c for c in likely if c != label), key=lambda c: c not in chosen)
    return [label, *others[: max(2, len(chosen - {label}))]]


def _bars(
    axes: Axes,
    said: Mapping[str, NDArray[np.float64]],
    names: Sequence[Sequence[int]],
    places: Sequence[tuple[float, NDArray[np.float64], float]],
) -> None:
    """Draw each model's probabilities of the classes that are shown of each image.

    Args:
        said: per role, [images, C].
        names: of each image, the classes.
        places: of each image, the bars' left end, the middle of each class [classes], and the
            height of a class.
    """
    left = np.concatenate([np.full(len(y), x) for x, y, _ in places])
    middle = np.concatenate([y for _, y, _ in places])
    height = np.concatenate([np.full(len(y), step) for _, y, step in places])
    axes.barh(middle, ONE, 0.84 * height, left, color=LIGHT)
    for row, (role, each) in enumerate(said.items()):
        share = np.concatenate([p[shown] for p, shown in zip(each, names, strict=True)])
        thick = 0.84 * height / len(said)
        y = middle + (row - (len(said) - 1) / 2) * thick
        style = ROLES[role]
        axes.barh(
            y,
            ONE * share,
            thick,
            left,
            label=role,
            color=style["color"],
            hatch=style["hatch"],
            edgecolor="white",
        )
        for at, start, part in zip(y, left, share, strict=True):
            words = f" {100 * part:.0f} %"
            axes.text(start + ONE * part, at, words, va="center_baseline", fontsize=7)


def to_picture(pixels: Tensor) -> NDArray[np.uint8]:
    """Convert pixels [channels, height, width] for matplotlib: [height, width], or with [...,
    3].
    """
    picture: NDArray[np.uint8] = pixels.permute(1, 2, 0).numpy()
    return picture[:, :, 0] if picture.shape[2] == 1 else picture


def image_grid(
    pictures: Sequence[NDArray[np.uint8]], titles: Sequence[str], columns: int
) -> Figure:
    """Show pictures of one size in rows, each with a title of up to three lines.

    Args:
        pictures: [height, width] or [height, width, 3] each.
        columns: most pictures in a row.
    """
    side = 1.2  # inches, of a picture; its column and its title:
    cell = 1.35
    above = 0.52
    columns = min(columns, len(pictures))
    tall = side * pictures[0].shape[0] / pictures[0].shape[1]
    figure, axes = _sheet(cell * columns, (tall + above) * -(-len(pictures) // columns))
    for place, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        row, column = divmod(place, columns)
        left = cell * column + (cell - side) / 2
        top = (tall + above) * row + above
        _put(axes, picture, left, top, side, tall)
        axes.text(left + side / 2, top - 0.04, title, ha="center", va="bottom", fontsize=8)
    return figure


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure whose only axes are without frame, in inches from the upper left corner."""
    figure, axes = new_figure(width, height)
    figure.set_dpi(110)
    axes.axis("off")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    return figure, axes


def _put(
    axes: Axes, picture: NDArray[np.uint8], left: float, top: float, wide: float, tall: float
) -> None:
    """Draw a picture [height, width] or [height, width, 3] on a sheet, of this size in inches."""
    axes.imshow(
        picture,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
        aspect="equal",
        extent=(left, left + wide, top + tall, top),
    )
