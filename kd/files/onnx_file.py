"""What an ONNX file says of itself; read without ONNX Runtime."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kd.errors import UserError


@dataclass(frozen=True)
class OnnxFacts:
    """What is read of an ONNX file.

    Attributes:
        elsewhere: other files that it takes tensors from.
        metadata: values as JSON where they are; empty if it has none.
        parameters: numbers in its tensors.
    """

    elsewhere: tuple[str, ...]
    metadata: Mapping[str, object]
    parameters: int


def facts_of(path: Path, where: str) -> OnnxFacts:
    """Read an ONNX file, once however often it is asked for while it stays the same.

    Args:
        where: config key of the path, for messages.

    Raises:
        UserError: it is no ONNX file, or onnx is not installed.
    """
    try:
        found = path.stat()
        return _read(path, found.st_mtime_ns, found.st_size)
    except ImportError as error:
        raise UserError(
            f"{where}: {error.name} is not installed: pip install 'kd[export]'"
        ) from error
    except Exception as error:  # its own exceptions, all about the file
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"{where}: {path} is no ONNX file, or a damaged one: {reason}") from error


def check_whole(path: Path, where: str, accepted: str) -> OnnxFacts:
    """Refuse an ONNX file that takes tensors from other files, which may be anywhere.

    Args:
        accepted: what is accepted instead, for the message.

    Returns:
        what it says of itself.

    Raises:
        UserError: it names another file.
    """
    found = facts_of(path, where)
    if found.elsewhere:
        raise UserError(
            f"{where}: {path} takes tensors from another file ({', '.join(found.elsewhere)}); "
            f"accepted is {accepted}"
        )
    return found


@lru_cache(maxsize=8)
def _read(path: Path, changed: int, size: int) -> OnnxFacts:
    """Parse a file; `changed` and `size` tell its versions apart."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    metadata: dict[str, object] = {}
    for entry in model.metadata_props:
        try:
            metadata[entry.key] = json.loads(entry.value)
        except ValueError:
            metadata[entry.key] = entry.value
    tensors = [each for each in _messages(model) if isinstance(each, onnx.TensorProto)]
    entries = [entry for each in tensors for entry in each.external_data]
    return OnnxFacts(
        tuple(entry.value for entry in entries if entry.key == "location"),
        metadata,
        sum(math.prod(each.dims) for each in model.graph.initializer),
    )


def _messages(model: Any) -> Iterator[Any]:
    """Iterate over a protobuf message and all messages inside, in no order."""
    open_ends = [model]
    while open_ends:
        yield (message := open_ends.pop())
        for _, value in message.ListFields():
            several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
            open_ends += [each for each in (value if several else [value]) if _is_message(each)]


def _is_message(value: object) -> bool:
    return hasattr(value, "ListFields")
