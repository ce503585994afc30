"""Exported files as functions: float32 images [B, C, H, W] to logits [B, classes], on the CPU."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from kd.errors import UserError

# Packages that write and run a format, and the extra with them
WITH_ONNX = ("onnx", "onnxscript", "onnxruntime")
PACKAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "onnx": (WITH_ONNX, "export"),
    "fp16": (WITH_ONNX, "export"),
    "int8": (WITH_ONNX, "export"),
    "pt2": ((), ""),
    "openvino": (("onnx", "onnxscript", "openvino"), "openvino"),
    "litert": (("litert-torch", "ai-edge-litert"), "litert"),
}


def check_packages(kind: str, where: str) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        UserError: names the package and the extra with it.
    """
    packages, extra = PACKAGES[kind]
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            limit = (
                f"; litert-torch 0.10 needs torch below 2.15, found {torch.__version__}: another "
                "virtual environment with an older torch can export a run of this one"
                if extra == "litert"
                else ""
            )
            raise UserError(
                f"{where}: {package} is not installed: pip install 'kd[{extra}]'{limit}"
            ) from None


def versions() -> dict[str, str]:
    """Return the versions of the packages for exported files that are installed."""
    found = {}
    for package in sorted({name for names, _ in PACKAGES.values() for name in names}):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class OpenVinoNet:
    """File of OpenVINO, in float32, with as many threads as PyTorch."""

    def __init__(self, path: Path) -> None:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._ask = openvino.Core().compile_model(str(path), "CPU", options)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute logits [B, classes] for x [B, C, H, W]."""
        (logits,) = self._ask([x.cpu().numpy()]).values()
        return torch.from_numpy(logits.copy())


class LiteRtNet:
    """File of LiteRT (`.tflite`), which takes one image at a time, with PyTorch's threads."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._net = Interpreter(str(path), num_threads=torch.get_num_threads())
        self._net.allocate_tensors()
        (self._given,) = (each["index"] for each in self._net.get_input_details())
        (self._answer,) = (each["index"] for each in self._net.get_output_details())

    def __call__(self, x: Tensor) -> Tensor:
        """Compute logits [B, classes] for x [B, C, H, W]."""
        found = []
        for image in torch.split(x.cpu(), 1):
            self._net.set_tensor(self._given, image.numpy())
            self._net.invoke()
            found.append(torch.from_numpy(self._net.get_tensor(self._answer)))
        return torch.cat(found)
