"""Colours and line styles of all pictures, from Okabe and Ito (2008), safe for colour blindness.

Lines and markers differ as well, for printers and for readers who see no colours.
"""

from collections.abc import Mapping
from typing import Any

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
PURPLE, SKY, VERMILION, BLACK, GRAY = "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999"
LIGHT = "#EEEEEE"

ROLES: Mapping[str, Mapping[str, Any]] = {
    "teacher": {"color": BLUE, "linestyle": "--", "marker": "s", "hatch": ""},
    "baseline": {"color": ORANGE, "linestyle": ":", "marker": "^", "hatch": "////"},
    "student": {"color": GREEN, "linestyle": "-", "marker": "o", "hatch": "...."},
}
# For several series; none is the teacher's or the baseline's
STUDENTS = (GREEN, PURPLE, SKY, VERMILION, BLACK)
MAP = "cividis"  # for numbers, dark to light
