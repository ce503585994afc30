"""Text of `--help`: examples, knobs with defaults and ranges, and groups of files."""

import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from kd.config.trainer import Options

# Files with the knobs of a group, and the prefix of these knobs.
SHARED = {"teacher": "base/teacher.yaml", "data": "base/data.yaml", "trainer": "trainer/auto.yaml"}
WIDTH = 110
PLACED_AT_ROOT = "# @package _global_"


def usage(
    doc: str, folder: Path, config: str, model: type[BaseModel], typed: Sequence[str] = ()
) -> str:
    """Build the help text of a command.

    Args:
        doc: docstring of the command, with examples.
        folder: config folder; its subfolders are groups.
        config: name of the config file.
        model: schema of the config.
        typed: what was typed beside `--help`; the knobs of a file so chosen are listed too.
    """
    groups = dict(_groups(folder, config))
    found = dict(_ranges(model.model_json_schema()))
    found |= _ranges(Options.model_json_schema(), "trainer.")
    parts = [doc.strip(), "", "Knobs, as KEY=VALUE:"]
    parts += [line for name in _files(folder, config) for line in _knobs(folder / name, found)]
    for group in [each for each in SHARED if groups.get(each)]:
        parts += ["", f"Knobs of the {group}:"]
        parts += _knobs(folder / SHARED[group], found, f"{group}.")
    for group, _, name in (each.partition("=") for each in typed):
        if group in groups and (file := folder / group / f"{name}.yaml").is_file():
            parts += ["", f"Knobs of {group}={name}:", *_about(file)]
            parts += _knobs(file, found, "" if PLACED_AT_ROOT in file.read_text() else f"{group}.")
    if groups:
        parts += ["", "Groups of files, as GROUP=FILE; with --help, that file's knobs:"]
    for group in groups:
        names = ", ".join(
            sorted(path.stem for path in (folder / group.partition("@")[0]).glob("*.yaml"))
        )
        parts += _two_columns(group, names)
    parts += ["", "--cfg job --resolve shows the whole config; a=1,2 with -m runs both."]
    return "\n".join(parts)


def _defaults(folder: Path, config: str) -> list[object]:
    found: list[object] = yaml.safe_load((folder / f"{config}.yaml").read_text()).get(
        "defaults", []
    )
    return found


def _files(folder: Path, config: str) -> list[str]:
    """Return the config's file and the files that it includes whole, and those that they do."""
    whole = [
        each for each in _defaults(folder, config) if isinstance(each, str) and each != "_self_"
    ]
    return [f"{config}.yaml", *(file for each in whole for file in _files(folder, each))]


def _groups(folder: Path, config: str) -> Iterator[tuple[str, str | None]]:
    """Iterate over the groups of a command's config with their choice, nested groups included."""
    for each in _defaults(folder, config):
        if isinstance(each, str) and each != "_self_" and (folder / f"{each}.yaml").is_file():
            yield from _groups(folder, each)
        elif isinstance(each, Mapping):
            for name, choice in each.items():
                if not name.startswith(("override ", "optional ")):
                    yield name, choice
                    if "@" in name:  # a group at another place
                        continue
                    inner = [path for path in (folder / name).iterdir() if path.is_dir()]
                    yield from ((f"{name}/{path.name}", None) for path in sorted(inner))


def _about(file: Path) -> list[str]:
    """Return the comment that heads a config file, wrapped."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    words = " ".join(line[1:].strip() for line in lines if line != PLACED_AT_ROOT)
    return textwrap.wrap(words, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _knobs(file: Path, ranges: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    """Format each knob of a file: its default, the comment beside it, and its range."""
    path: list[str] = []
    whole = re.sub(r",\n +", ", ", re.sub(r"\\\n +", "", file.read_text()))  # one line per value
    for line in whole.splitlines():
        if not (parsed := re.match(r"( *)(\w+): *([^#]*?) *(?:# (.*))?$", line)):
            continue
        indent, name, value, about = parsed.groups()
        path = [*path[: len(indent) // 2], name]
        if path[0] in ("defaults", "hydra") or name == "_target_" or not (value or about):
            continue
        key = prefix + ".".join(path)
        accepted = f"({ranges[key]})" if ranges.get(key) else ""
        words = " ".join(each for each in (about, accepted) if each)
        yield from _two_columns(f"{key}={value}" if value != "???" else key, words)


def _two_columns(first: str, rest: str) -> list[str]:
    """Wrap in two columns."""
    start = f"  {first}".ljust(34) if len(first) < 32 else f"  {first}  "
    return textwrap.wrap(start + rest, WIDTH, subsequent_indent=36 * " ", break_long_words=False)


def _ranges(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Describe the accepted values of each key of a model."""
    known = schema.get("$defs", {})
    for name, node in schema.get("properties", {}).items():
        if (words := _words(node, known)) and words != "null":
            yield prefix + name, words
        for each in [node, *node.get("anyOf", ())]:
            if inner := known.get(str(each.get("$ref", "")).rpartition("/")[2]):
                yield from _ranges({**inner, "$defs": known}, f"{prefix}{name}.")


def _words(node: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    if "description" in node:
        return str(node["description"])
    if "enum" in node or "const" in node:
        return "one of " + ", ".join(map(str, node.get("enum", [node.get("const")])))
    if "anyOf" in node:
        kinds = [_words(each, known) for each in node["anyOf"]]
        return " or ".join(each for each in kinds if each)
    kind = node.get("type")
    if kind == "integer":
        return "a whole number" + _bounds(node, whole=True)
    if kind == "number":
        return "a number" + _bounds(node, whole=False)
    return {"boolean": "true or false", "null": "null"}.get(str(kind), "")


def _bounds(node: Mapping[str, Any], whole: bool) -> str:
    """Format bounds of a JSON schema."""
    low = node.get("minimum")
    above = node.get("exclusiveMinimum")
    high = node.get("maximum")
    below = node.get("exclusiveMaximum")
    if whole and above is not None:
        low, above = above + 1, None
    words = [f"from {low:g}"] if low is not None else []
    words += [f"above {above:g}"] if above is not None else []
    words += [f"up to {high:g}"] if high is not None else []
    words += [f"below {below:.3g}"] if below is not None and below < 1e9 else []
    return f" {' and '.join(words)}" if words else ""
