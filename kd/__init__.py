"""Knowledge distillation for image classifiers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes seconds
    from kd.runs.distill import distill
    from kd.shipping.model import Model

__all__ = ["distill", "load"]


def load(path: str | Path, *, device: str = "cpu", trust: Sequence[str] = ()) -> "Model":
    """Load a trained student: `load("outputs/runs/RUN")(images)`.

    Args:
        path: run folder, its `student.safetensors`, an ONNX file of `python -m kd.export`, a folder
            of `python -m kd.publish`, or `hf:USER/NAME` on the Hugging Face hub.
        device: PyTorch device to compute on; an ONNX file always uses the CPU.
        trust: further packages from which the file may build a net.

    Raises:
        kd.errors.UserError: the file is missing, damaged or not ours, or names a net that is not
            trusted.
    """
    from kd.shipping.model import load_model

    return load_model(path, "path", device=device, trust=trust)


def __getattr__(name: str) -> object:
    if name == "distill":
        from kd.runs.distill import distill

        return distill
    raise AttributeError(f"module 'kd' has no attribute {name!r}")
