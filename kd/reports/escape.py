"""Text that may hold anything (names of classes, files and runs), shown and not obeyed by what
shows it.
"""

import re
from collections.abc import Mapping
from typing import Any

from kd.log import printable


def in_markdown(text: str) -> str:
    """As one line that shows the text: no HTML, no table cell's end, no link."""
    plain = printable(" ".join(text.split()))
    return (
        plain.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")
    )


def escaped(node: Any) -> Any:
    """A record with each text in it as `in_markdown` has it."""
    if isinstance(node, Mapping):
        return {key: escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [escaped(value) for value in node]
    return in_markdown(node) if isinstance(node, str) else node


def as_code(text: str) -> str:
    """As code in a line, to be copied as it is."""
    plain = printable(" ".join(text.split("\n")))
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    return f"{fence}{plain}{fence}" if len(fence) == 1 else f"{fence} {plain} {fence}"


def in_a_cell(value: Any) -> Any:
    """A value for a CSV file; a text that a spreadsheet would compute as a formula has an
    apostrophe before it.
    """
    return (
        f"'{value}"
        if isinstance(value, str) and re.match(r"[=+@\t\r]|-(?![\d.])", value)
        else value
    )
