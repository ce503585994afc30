"""Figures of a run, number by number, from formulas written out here; for 2 and 100 classes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from torch import Tensor

from kd.files.report_file import ReliabilityBin
from kd.reports.figures import (
    as_array,
    confusion_figure,
    confusion_matrix,
    export,
    learning_curves,
    reliability_diagram,
)
from kd.reports.gallery import ONE, disagreement, disagreement_gallery
from kd.reports.page import picture
from kd.reports.run_figures import figures_of_run

ROLES = ("teacher", "baseline", "student")


def some(classes: int, count: int = 60) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Pixels, logits by role, labels."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=g)
    logits = {role: 2 * torch.randn(count, classes, generator=g) for role in ROLES}
    return torch.randint(256, (count, 3, 8, 8), generator=g, dtype=torch.uint8), logits, labels


HISTORIES = {
    "teacher": [{"epoch": 0, "val/acc": 0.9, "val/loss": 0.4}],
    "baseline": [{"epoch": e, "val/acc": 0.1 * e, "val/loss": 2 - 0.1 * e} for e in range(5)],
    "student": [{"epoch": e, "val/acc": 0.2 * e, "val/loss": 2 - 0.2 * e} for e in range(4)],
}


@pytest.mark.parametrize("classes", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_all_of_a_run(classes: int, tmp_path: Path) -> None:
    images, logits, labels = some(classes)
    names = [f"a rather long name of class {i}" for i in range(classes)]
    found = dict(figures_of_run(HISTORIES, logits, images, labels, names))
    assert set(found) == {
        "learning_curves",
        "disagreement",
        *(f"{kind}/{role}" for kind in ("confusion", "reliability") for role in ROLES),
    }
    for name, figure in found.items():
        pixels = as_array(figure)
        assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edges == 255).all(), f"{name} is cut off"
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
        assert max(pixels.shape[:2]) < 2000
    assert not pyplot.get_fignums(), "pyplot's global state is not to be touched"


def test_one_model_disagrees_with_nobody() -> None:
    images, logits, labels = some(3)
    alone = {"baseline": logits["baseline"]}
    found = dict(figures_of_run({"baseline": HISTORIES["baseline"]}, alone, images, labels, "abc"))
    assert set(found) == {"learning_curves", "confusion/baseline", "reliability/baseline"}


def test_confusion_matrix() -> None:
    labels, chosen = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 2, 1, 1, 1])
    axes, _ = confusion_matrix(labels, chosen, ["cat", "dog", "eel"], "student").axes
    assert axes.get_title() == "student: 4 of 6 test images right"
    counts = {
        (text.get_position()[1], text.get_position()[0]): int(text.get_text())
        for text in axes.texts
    }
    assert counts == {(0, 0): 2, (0, 2): 1, (1, 1): 2, (2, 1): 1}  # (row: true, column: chosen)
    shares = axes.images[0].get_array()
    assert np.allclose(shares, [[2 / 3, 0, 1 / 3], [0, 1, 0], [0, 1, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "eel"]


def test_many_classes_are_summed_up_in_words() -> None:
    labels = torch.arange(100).repeat(3)
    chosen = labels.clone()
    chosen[[7, 107, 207]] = 9  # the class 7 is taken for 9 three times
    chosen[[4, 104]] = 5
    chosen[50] = 51
    axes = confusion_matrix(labels, chosen, [f"n{i}" for i in range(100)], "student").axes[0]
    assert not axes.texts
    assert axes.get_xlabel().splitlines()[2:] == [
        "most frequent confusions, in images:",
        "n7 as n9: 3;  n4 as n5: 2",
    ]
    assert len(axes.get_yticklabels()) == 100


def test_more_classes_than_a_matrix_can_show_are_ranked() -> None:
    labels = torch.arange(101).repeat(4)
    chosen = labels.clone()
    chosen[labels == 30] = 7
    chosen[torch.tensor([5, 5 + 101, 5 + 202])] = 6
    names = [f"n{i}" for i in range(101)]
    figure = confusion_figure(labels, chosen, names, "student")
    worst, pairs = figure.axes
    assert figure.get_suptitle() == "student: 397 of 404 test images right"
    assert [label.get_text() for label in worst.get_yticklabels()][:3] == ["n30", "n5", "n0"]
    assert [bar.get_width() for bar in worst.patches][:3] == [0, 0.25, 1]
    assert [text.get_text().strip() for text in worst.texts][:2] == ["0 of 4", "1 of 4"]
    assert [label.get_text() for label in pairs.get_yticklabels()] == ["n30 as n7", "n5 as n6"]
    assert [bar.get_width() for bar in pairs.patches] == [4, 3]
    assert len(picture(figure, "", "").src) < 200_000
    right = confusion_figure(labels, labels, names, "student").axes[1]
    assert not right.patches, "no pair is confused where all are right"


def test_reliability_diagram() -> None:
    bins = [ReliabilityBin(count=0, confidence=None, accuracy=None) for _ in range(15)]
    bins[7] = ReliabilityBin(count=2, confidence=0.525, accuracy=0.5)
    bins[13] = ReliabilityBin(count=1, confidence=0.91, accuracy=1.0)
    bins[14] = ReliabilityBin(count=1, confidence=0.97, accuracy=1.0)
    upper, lower = reliability_diagram(bins, "student").axes
    bars = {round(bar.get_x() * 15): bar.get_height() for bar in upper.patches}
    assert bars == {7: 0.5, 13: 1.0, 14: 1.0}
    assert {round(bar.get_x() * 15): bar.get_height() for bar in lower.patches} == {
        7: 2,
        13: 1,
        14: 1,
    }
    assert [text.get_text() for text in lower.texts] == ["2", "1", "1"]
    points = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in upper.lines
        if len(line.get_xdata()) == 1
    ]
    assert points == [(0.525, 0.5), (0.91, 1.0), (0.97, 1.0)]
    ece = 2 / 4 * abs(0.5 - 0.525) + 1 / 4 * (1 - 0.91) + 1 / 4 * (1 - 0.97)
    # 2.93 / 4
    title = f"student: expected calibration error {ece:.4f}\n75.00 % right, mean confidence 73.25 %"
    assert upper.get_title() == title


def test_disagreement() -> None:
    p, q, r = [0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]

    def entropy(x: list[float]) -> float:
        return -sum(v * math.log(v) for v in x if v)

    mean = [(a + b + c) / 3 for a, b, c in zip(p, q, r, strict=True)]
    wanted = entropy(mean) - (entropy(p) + entropy(q) + entropy(r)) / 3
    each = [torch.tensor([x, [1.0, 0.0, 0.0]], dtype=torch.float64).log() for x in (p, q, r)]
    assert disagreement(each).tolist() == pytest.approx([wanted, 0.0])
    apart = 1000 * torch.eye(2, dtype=torch.float64)
    assert disagreement([apart[:1], apart[1:]]).item() == pytest.approx(math.log(2))


def test_the_gallery_shows_the_furthest_apart_first() -> None:
    sure, torn = [0.9, 0.05, 0.05], [0.4, 0.3, 0.3]
    logits = {
        "teacher": torch.tensor([sure, sure, torn], dtype=torch.float64).log(),
        "student": torch.tensor([sure, [0.05, 0.05, 0.9], sure], dtype=torch.float64).log(),
    }
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    figure = disagreement_gallery(
        images, torch.tensor([0, 1, 2]), logits, ["cat", "dog", "eel"], count=2
    )
    (axes,) = figure.axes
    words = [text.get_text().strip() for text in axes.texts]
    assert [each for each in words if "image" in each] == ["test image 1", "test image 2"]
    assert [int(each.get_array().flat[0]) for each in axes.images] == [1, 2]
    names = [each for each in words if each.removeprefix("true: ") in ("cat", "dog", "eel")]
    assert names == ["true: dog", "cat", "eel", "true: eel", "cat", "dog"]
    said = {bar.get_label(): [patch.get_width() for patch in bar] for bar in axes.containers}
    assert said["teacher"] == pytest.approx(ONE * np.array([0.05, 0.9, 0.05, 0.3, 0.4, 0.3]))
    assert said["student"] == pytest.approx(ONE * np.array([0.05, 0.05, 0.9, 0.05, 0.9, 0.05]))
    assert words.count("90 %") == 3


def test_learning_curves() -> None:
    accuracy, loss = learning_curves(HISTORIES).axes
    lines = {
        line.get_label(): line for line in accuracy.lines if not line.get_label().startswith("_")
    }
    assert list(lines) == list(ROLES)
    assert list(lines["student"].get_xdata()) == [1, 2, 3, 4]
    assert list(lines["student"].get_ydata()) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert [list(line.get_ydata()) for line in loss.lines if len(line.get_xdata()) == 5] == [
        pytest.approx([2, 1.9, 1.8, 1.7, 1.6])
    ]
    level = [line for line in accuracy.lines if line.get_label().startswith("_")]
    # The teacher, which was not trained
    assert [list(line.get_ydata()) for line in level] == [[0.9, 0.9]]
    assert len({(line.get_linestyle(), line.get_color()) for line in lines.values()}) == 3


@pytest.mark.parametrize("ending", ["png", "svg", "gif"])
def test_export(ending: str, tmp_path: Path) -> None:
    path, figure = tmp_path / f"a.{ending}", learning_curves(HISTORIES)
    if ending == "gif":
        with pytest.raises(ValueError, match=r"accepted are .png and .svg"):
            export(figure, path)
        return
    export(figure, path)
    if ending == "png":
        assert Image.open(path).size == (1440, 600)
    else:
        assert "<svg" in path.read_text()


def test_the_layout_is_found_once_however_often_a_figure_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[object] = []
    original = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(
        ConstrainedLayoutEngine, "execute", lambda *each: (found.append(1), original(*each))
    )
    figure = learning_curves({"student": [{"epoch": 0, "val/acc": 0.5, "val/loss": 1.0}]})
    picture(figure, "", "")
    as_array(figure)
    assert len(found) == 1
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks()), (
        "an epoch is a whole number"
    )
