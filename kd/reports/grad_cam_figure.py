"""Grad-CAM of teacher and student side by side, on test images where they differ."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from kd.reports.figures import new_figure, short_name
from kd.reports.gallery import to_picture


def grad_cam_figure(
    pixels: Tensor,
    places: Sequence[int],
    labels: Tensor,
    probabilities: Mapping[str, Tensor],
    maps: Mapping[str, Tensor],
    classes: Sequence[str],
) -> Figure:
    """Draw a row per image: the image, then per role its map on top of it and its predicted class.

    Args:
        pixels: uint8 [B, C, H, W].
        places: positions of the images in the test part, [B].
        labels: int64 [B].
        probabilities: per role, [B, classes].
        maps: per role, [B, H, W] in [0, 1].
        classes: names.
    """
    rows = len(pixels)
    columns = 1 + len(maps)
    figure, grid = new_figure(2.3 * columns, 2.3 * rows + 0.6, rows, columns, squeeze=False)
    for row, line in enumerate(grid):
        picture = to_picture(pixels[row])
        for axes in line:
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        name = short_name(classes[int(labels[row])])
        line[0].set_title(f"test image {places[row]}\ntrue: {name}", fontsize=9)
        for axes, (role, each) in zip(line[1:], maps.items(), strict=True):
            axes.imshow(each[row].numpy(), cmap="inferno", alpha=0.55, vmin=0, vmax=1)
            share, chosen = probabilities[role][row].max(0)
            said = f"{short_name(classes[int(chosen)])}, {100 * float(share):.0f} %"
            axes.set_title(f"{role}\n{said}", fontsize=9)
    figure.suptitle("Where teacher and student look (Grad-CAM)", fontsize=12)
    return figure
