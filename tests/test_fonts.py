"""Class names in letters that matplotlib's font lacks."""

import warnings
from pathlib import Path

import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from kd.reports import fonts
from kd.reports.figures import confusion_matrix, settle
from kd.reports.page import picture

CLASSES = ["猫", "개", "cat"]
LABELS = torch.tensor([0, 1, 2, 2])


def a_font(path: Path, letters: str) -> Path:
    """A font with a square for each letter."""
    names = [".notdef", *(f"u{ord(letter):X}" for letter in letters)]
    pen = TTGlyphPen(None)
    for i, corner in enumerate(((0, 0), (0, 700), (700, 700), (700, 0))):
        (pen.lineTo if i else pen.moveTo)(corner)
    pen.closePath()
    square = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(letter): f"u{ord(letter):X}" for letter in letters})
    font.setupGlyf(dict.fromkeys(names, square))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Some CJK", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return path


def shown() -> dict[str, list[str]]:
    """Return the texts of a figure with these class names, drawn without a warning, and their
    fonts.
    """
    figure = confusion_matrix(LABELS, LABELS, CLASSES, "student")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settle(figure)
        picture(figure, "", "")
    return {text.get_text(): text.get_fontfamily() for text in figure.findobj(Text)}


@pytest.mark.slow
def test_a_font_that_has_the_letters_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fontManager.addfont(a_font(tmp_path / "some.ttf", "猫개"))
    fonts._families.cache_clear()
    texts = shown()
    assert texts["猫"][-1] == texts["개"][-1] == "Some CJK"
    assert "Some CJK" not in texts["cat"]
    fonts._families.cache_clear()


def test_without_one_it_stays_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [font for font in fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(fontManager, "ttflist", plain)
    fonts._families.cache_clear()
    assert {fonts.BOX, "cat"} <= shown().keys()
    fonts._families.cache_clear()
