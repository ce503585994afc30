"""Font fallback: letters that matplotlib's font lacks come from another font of this machine."""

import re
from collections.abc import Iterable
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

# Fonts with many letters, tried first: each takes milliseconds to open.
LARGE = re.compile(
    "CJK|Source Han|WenQuanYi|PingFang|Hiragino|YaHei|SimHei|SimSun|Malgun|Meiryo|Gothic|Nanum"
    "|Arial Unicode|Droid Sans Fallback|Unifont|Noto Sans"
)
BOX = "\u25a1"  # replaces a letter that no font has


def give_letters(figure: Figure) -> None:
    """Give a figure's texts fonts that have their letters; a letter without font becomes a box."""
    axes = [axis for each in figure.axes if each.axison for axis in (each.xaxis, each.yaxis)]
    labels = [axis.get_majorticklabels() for axis in axes]  # otherwise created at drawing time
    texts = figure.findobj(Text)
    letters = frozenset("".join(text.get_text() for text in texts)) - _letters_of(_own())
    letters = frozenset(each for each in letters if each.isprintable())
    if not letters:
        return
    families, lacking = _families(letters)
    boxes = dict.fromkeys(map(ord, lacking), BOX)
    for text in texts:
        if letters & set(text.get_text()):
            text.set_fontfamily([*text.get_fontfamily(), *families])
    drawn_anew = {each for shown in labels for each in shown}
    for text in set(texts) - drawn_anew:
        text.set_text(text.get_text().translate(boxes))
    for axis, shown in zip(axes, labels, strict=True):
        if lacking & set("".join(each.get_text() for each in shown)):
            axis.set_ticklabels([each.get_text().translate(boxes) for each in shown])


def _own() -> str:
    return findfont(FontProperties())


@cache
def _letters_of(file: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):  # a font type that cannot be drawn
        return frozenset()


@cache
def _families(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return fonts that together have these letters, and the letters that none has."""
    found: list[str] = []
    for file, name in _fonts():
        if letters & _letters_of(file):
            found.append(name)
            letters -= _letters_of(file)
        if not letters:
            break
    return tuple(found), letters


def _fonts() -> Iterable[tuple[str, str]]:
    every = {font.name: font.fname for font in fontManager.ttflist if font.style == "normal"}
    for name in sorted(every, key=lambda name: (LARGE.search(name) is None, name)):
        yield every[name], name
