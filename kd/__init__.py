"""Knowledge distillation for image classifiers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import
    from kd.runs.distill import distill
    from kd.shipping.model import Model

__all__ = ["distill", "load"]


def load(path: str | Path, *, device: str = "cpu", trust: Sequence[str] = ()) -> "Model":
    """A trained student, ready to be asked: `load("outputs/runs/RUN")(images)`.

    Args:
        path: a run's folder, its `student.safetensors`, or an ONNX file that `python -m kd.export` wrote.
        device: where it computes, as PyTorch names it; an ONNX file computes on the CPU.
        trust: packages that the file may build a net from, besides kd itself.

    Raises:
        kd.errors.UserError: there is no such file, it is damaged or none of ours, or names a net that is not trusted.
    """
    from kd.shipping.model import load_model

    return load_model(path, "path", device=device, trust=trust)


def __getattr__(name: str) -> Any:
    if name == "distill":
        from kd.runs.distill import distill

        return distill
    raise AttributeError(f"module 'kd' has no attribute {name!r}")
