"""Escaping of text from files (class, file and run names) for each output format."""

import re
from collections.abc import Mapping
from typing import Any

from kd.log import printable


def in_markdown(text: str) -> str:
    """Format as one line of plain text in Markdown: no HTML, no cell separator, no link."""
    plain = printable(" ".join(text.split()))
    return (
        plain.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")
    )


def escape_record(node: Any) -> Any:
    """Apply `in_markdown` to every text of a record."""
    if isinstance(node, Mapping):
        return {key: escape_record(value) for key, value in node.items()}
    if isinstance(node, list):
        return [escape_record(value) for value in node]
    return in_markdown(node) if isinstance(node, str) else node


def as_code(text: str) -> str:
    """Format as inline code, to be copied unchanged."""
    plain = printable(" ".join(text.split("\n")))
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    return f"{fence}{plain}{fence}" if len(fence) == 1 else f"{fence} {plain} {fence}"


def in_a_cell(value: Any) -> Any:
    """Format a value for a CSV file; an apostrophe precedes text that a spreadsheet would run as a
    formula.
    """
    return (
        f"'{value}"
        if isinstance(value, str) and re.match(r"[=+@\t\r]|-(?![\d.])", value)
        else value
    )
