"""Classes of a weights file: their names, and the match of its outputs to the data's classes."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd.errors import UserError, nearest
from kd.files.answer_tables import TABLES
from kd.files.header import header_of
from kd.files.onnx_file import facts_of
from kd.files.state_dicts import read_content

# Keys under which checkpoints and hub config.json files name classes.
KEYS = (
    "class_to_idx",
    "classes",
    "class_names",
    "label_names",
    "id2label",
    "idx_to_class",
)
AROUND = ("pretrained_cfg", "hyper_parameters", "args", "config", "meta")  # where to look for them


def names_in(file: Path, where: str) -> list[str] | None:
    """Return the class names in a file, in output order; None if it has none.

    A run's student has them in its header, a checkpoint under one of `KEYS`, a hub model in
    config.json beside it, an ONNX file in its metadata.

    Raises:
        UserError: the file cannot be read.
    """
    if header := header_of(file):
        return _as_names(header.get("classes"))
    content: object = {}
    if file.suffix == ".onnx":
        content = facts_of(file, where).metadata
    elif file.suffix not in (".safetensors", *TABLES):
        content = read_content(file, where)
    try:
        beside = json.loads((file.parent / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        beside = {}
    for holder in (content, beside):
        if isinstance(holder, Mapping):
            inner = [each for key in AROUND if isinstance(each := holder.get(key), Mapping)]
            for mapping in (holder, *inner):
                for key in KEYS:
                    if found := _as_names(mapping.get(key)):
                        return found
    return None


def names_from_config(value: str | Sequence[str], where: str) -> list[str]:
    """Return class names from the config: a list, or a file with one per line or in JSON.

    Raises:
        UserError: the file is missing, or holds no names.
    """
    if not isinstance(value, str):
        return list(value)
    path = Path(value).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot read {path.absolute()}: {error}") from error
    if path.suffix == ".json":
        try:
            found = _as_names(json.loads(text))
        except (ValueError, RecursionError):
            found = None
    else:
        found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise UserError(
            f"{where}: {path} holds no names of classes; accepted are one a line, a JSON "
            "list, or a JSON object of names and numbers"
        )
    return found


def _as_names(value: object) -> list[str] | None:
    """Convert a list of names, or a mapping between names and indices, to names in order."""
    if isinstance(value, Mapping):
        try:
            pairs = {int(v): str(k) for k, v in value.items()}  # class_to_idx
        except (TypeError, ValueError):
            try:
                pairs = {int(k): str(v) for k, v in value.items()}  # id2label
            except (TypeError, ValueError):
                return None
        value = [pairs[i] for i in sorted(pairs)] if sorted(pairs) == [*range(len(value))] else None
    if not isinstance(value, list | tuple) or not value:
        return None
    return list(map(str, value)) if all(isinstance(each, str | int) for each in value) else None


def count_common(theirs: Sequence[str], ours: Sequence[str]) -> int:
    """Count our classes that are among theirs."""
    return sum(output is not None for output in _outputs(theirs, ours))


def outputs_for(theirs: Sequence[str], ours: Sequence[str], where: str) -> list[int]:
    """Match each of our classes to an output by name.

    If names differ, case and punctuation are ignored; of names such as `tench, Tinca tinca` one
    suffices.

    Raises:
        UserError: one of ours is missing among theirs, or two of ours match the same one.
    """
    found = _outputs(theirs, ours)
    if missing := [name for name, output in zip(ours, found, strict=True) if output is None]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{where}: of the data's {len(ours)} classes {len(missing)} are not among its "
            f"{len(theirs)}: {', '.join(missing[:5])}{more}{nearest(missing[0], theirs)}; it "
            f"has {', '.join(theirs[:10])}{' ...' if len(theirs) > 10 else ''}"
        )
    outputs = [output for output in found if output is not None]
    if len(set(outputs)) < len(outputs):
        twice = next(each for each in outputs if outputs.count(each) > 1)
        both = [name for name, each in zip(ours, outputs, strict=True) if each == twice]
        raise UserError(f"{where}: its class {theirs[twice]!r} could be each of {', '.join(both)}")
    return outputs


def _outputs(theirs: Sequence[str], ours: Sequence[str]) -> list[int | None]:
    exact: dict[str, int] = {}
    loose: dict[str, int] = {}
    for i, name in enumerate(theirs):
        exact.setdefault(name, i)
        for word in (name, *name.split(",")):
            loose.setdefault(_plain(word), i)
    if all(name in exact for name in ours):
        return [exact[name] for name in ours]
    return [exact.get(name, loose.get(_plain(name))) for name in ours]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
