"""Colours and line styles of all pictures.

Those of Okabe and Ito (2008), told apart by colour-blind eyes too.

What differs in colour differs in line or marker as well, for printers and for those who see no
colours.
"""

from collections.abc import Mapping
from typing import Any

Axes = Any  # of matplotlib, which has no types

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
PURPLE, SKY, VERMILION, BLACK, GRAY = "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999"

ROLES: Mapping[str, Mapping[str, Any]] = {
    "teacher": {"color": BLUE, "linestyle": "--", "marker": "s", "hatch": ""},
    "baseline": {"color": ORANGE, "linestyle": ":", "marker": "^", "hatch": "////"},
    "student": {"color": GREEN, "linestyle": "-", "marker": "o", "hatch": "...."},
}
STUDENTS = (
    GREEN,
    PURPLE,
    SKY,
    VERMILION,
    BLACK,
)  # of several; none is the teacher's or the baseline's
MAP = "cividis"  # of numbers, dark to light
