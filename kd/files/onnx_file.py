"""What an ONNX file says of itself; read without ONNX Runtime."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd.errors import UserError

if TYPE_CHECKING:
    from onnx import ModelProto


def check_whole(path: Path, where: str, accepted: str) -> None:
    """Refuse an ONNX file that takes tensors from other files, which may be anywhere.

    Args:
        accepted: what is accepted instead, for the message.

    Raises:
        UserError: it names another file.
    """
    open_ends = [_graph_file(path, where)]
    import onnx

    while open_ends:
        for _, value in open_ends.pop().ListFields():
            several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
            for each in value if several else [value]:
                if isinstance(each, onnx.TensorProto) and each.external_data:
                    entries = each.external_data
                    files = ", ".join(entry.value for entry in entries if entry.key == "location")
                    raise UserError(
                        f"{where}: {path} takes tensors from another file ({files}); accepted is "
                        f"{accepted}"
                    )
                if hasattr(each, "ListFields"):
                    open_ends.append(each)


def metadata_of(path: Path, where: str) -> dict[str, object]:
    """Read the metadata of an ONNX file, values as JSON where they are; empty if it has none.

    Args:
        where: config key of the path, for messages.

    Raises:
        UserError: it is no ONNX file, or onnx is not installed.
    """
    found: dict[str, object] = {}
    for entry in _graph_file(path, where).metadata_props:
        try:
            found[entry.key] = json.loads(entry.value)
        except ValueError:
            found[entry.key] = entry.value
    return found


def _graph_file(path: Path, where: str) -> "ModelProto":
    try:
        import onnx

        return onnx.load(str(path), load_external_data=False)
    except ImportError as error:
        raise UserError(
            f"{where}: {error.name} is not installed: pip install 'kd[export]'"
        ) from error
    except Exception as error:  # its own exceptions, all about the file
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"{where}: {path} is no ONNX file, or a damaged one: {reason}") from error


def parameters_in(path: Path, where: str) -> int:
    """Count the numbers in an ONNX file's tensors; arguments as of `metadata_of`."""
    graph = _graph_file(path, where).graph
    count = 0
    for tensor in graph.initializer:
        size = 1
        for length in tensor.dims:
            size *= length
        count += size
    return count
