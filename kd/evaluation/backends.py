"""Ways to run a net, each as a function for one forward pass."""

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kd.errors import UserError
from kd.nets.build import normalization_of
from kd.shape import Shape
from kd.shipping.formats import write_format
from kd.shipping.requests import FORMATS
from kd.shipping.runtimes import LiteRtNet, OpenVinoNet, check_packages

Pass = Callable[[], object]

UNSCALED = ((0.0,), (1.0,))
CALIBRATION = 4  # batches of 16 random images: int8 speed does not depend on their content


class UnavailableError(Exception):
    """A backend that this machine does not have; says why."""


class NetRunner:
    """A net to run with several backends.

    Args:
        net: in evaluation mode.
        folder: for files of the backends.
        threads: of the CPU.
    """

    def __init__(self, net: nn.Module, shape: Shape, folder: Path, threads: int) -> None:
        self.net = net.eval()
        self.shape = shape
        self.folder = folder
        self.threads = threads
        self._copies: dict[str, nn.Module] = {}

    def runs(self, backend: str, device: str, batch: int) -> Pass:
        """Return a synchronous forward pass on random images, already run once.

        Raises:
            UnavailableError: the backend is missing, or cannot run this net.
        """
        make = {
            "eager": self._eager,
            "compile": self._compile,
            "pt2": self._pt2,
            "openvino": self._on_cpu,
            "litert": self._on_cpu,
        }.get(backend, self._onnx)
        try:
            run = make(backend, device, batch)
            run()
        except UnavailableError:
            raise
        except Exception as error:  # compilers and exporters may raise anything; the others go on
            lines = str(error).strip().splitlines() or [""]
            raise UnavailableError(f"{type(error).__name__}: {lines[0][:200]}") from error
        return run

    def file(self, backend: str) -> Path:
        """Return the file for a backend, written at first use.

        Raises:
            UnavailableError: a package is not installed.
        """
        kind = backend.removeprefix("onnx_")
        path = self.folder / f"{backend}.{FORMATS[kind].rpartition('.')[2]}"
        if not path.exists():
            try:
                write_format(
                    kind,
                    *(self.net, self.shape, normalization_of(self.net, UNSCALED), path),
                    metadata={},
                    source=lambda: self.file("onnx"),
                    calibration=self._images,
                )
            except ImportError as error:
                raise UnavailableError(
                    f"{error.name} is not installed: pip install 'kd[export]'"
                ) from error
        return path

    def _images(self) -> Iterator[NDArray[np.float32]]:
        draw = np.random.default_rng(0)
        for _ in range(CALIBRATION):
            yield draw.random((16, *self._size), dtype=np.float32)

    @property
    def _size(self) -> tuple[int, int, int]:
        return self.shape.pixels

    def _eager(self, backend: str, device: str, batch: int) -> Pass:
        return _passes(self._on(device), torch.rand(batch, *self._size, device=device))

    def _compile(self, backend: str, device: str, batch: int) -> Pass:
        # It logs missing CUDA where none is wanted
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        compiled: Any = torch.compile(self._on(device), dynamic=False)
        return _passes(compiled, torch.rand(batch, *self._size, device=device))

    def _pt2(self, backend: str, device: str, batch: int) -> Pass:
        program: Any = torch.export.load(self.file(backend)).module().to(device)
        return _passes(program, torch.rand(batch, *self._size, device=device))

    def _on_cpu(self, backend: str, device: str, batch: int) -> Pass:
        if device != "cpu":
            raise UnavailableError("it is asked on the CPU")
        try:
            check_packages(backend, backend)
        except UserError as error:
            raise UnavailableError(str(error).removeprefix(f"{backend}: ")) from error
        kind: type[OpenVinoNet | LiteRtNet] = OpenVinoNet if backend == "openvino" else LiteRtNet
        return _passes(kind(self.file(backend)), torch.rand(batch, *self._size))

    def _on(self, device: str) -> nn.Module:
        if device not in self._copies:
            self._copies[device] = copy.deepcopy(self.net).to(device)
        return self._copies[device]

    def _onnx(self, backend: str, device: str, batch: int) -> Pass:
        try:
            import onnxruntime
        except ImportError as error:
            raise UnavailableError(
                "onnxruntime is not installed: pip install 'kd[export]'"
            ) from error
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        if provider not in onnxruntime.get_available_providers():
            raise UnavailableError(f"this onnxruntime {onnxruntime.__version__} has no {provider}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(self.file(backend)), options, providers=[provider]
        )
        # It falls back to the CPU with only a warning
        if provider not in session.get_providers():
            raise UnavailableError(
                f"this onnxruntime {onnxruntime.__version__} cannot start {provider}"
            )
        images = {
            session.get_inputs()[0].name: np.random.default_rng(0).random(
                (batch, *self._size), np.float32
            )
        }
        return lambda: session.run(None, images)


def _passes(net: Callable[[torch.Tensor], object], x: torch.Tensor) -> Pass:
    def run() -> None:
        with torch.inference_mode():
            net(x)
        if x.is_cuda:
            torch.cuda.synchronize()

    return run
