"""Escaping of text from files (class, file and run names) for each output format."""

import re
from collections.abc import Mapping
from typing import TypeVar, cast

from kd.files.records import Record
from kd.log import printable

Shown = TypeVar("Shown")


def in_markdown(text: str) -> str:
    """Format as one line of plain text in Markdown: no HTML, no cell separator, no link."""
    plain = printable(" ".join(text.split()))
    return (
        plain.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")
    )


def escape_record(node: Shown) -> Shown:
    """A record, or a part of one, with each text in it as `in_markdown` has it."""
    found: object = node
    if isinstance(node, Record):
        parts = {name: escape_record(getattr(node, name)) for name in node.model_fields_set}
        found = node.model_copy(update=parts)
    elif isinstance(node, Mapping):
        found = {key: escape_record(value) for key, value in node.items()}
    elif isinstance(node, list):
        found = [escape_record(value) for value in node]
    elif isinstance(node, str):
        found = in_markdown(node)
    return cast(Shown, found)


def as_code(text: str) -> str:
    """Format as inline code, to be copied unchanged."""
    plain = printable(" ".join(text.split("\n")))
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    return f"{fence}{plain}{fence}" if len(fence) == 1 else f"{fence} {plain} {fence}"


def in_a_cell(value: object) -> object:
    """Format a value for a CSV file; an apostrophe keeps spreadsheets from running it as a
    formula.
    """
    return (
        f"'{value}"
        if isinstance(value, str) and re.match(r"[=+@\t\r]|-(?![\d.])", value)
        else value
    )
