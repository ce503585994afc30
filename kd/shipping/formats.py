"""Export formats that run without kd.

ONNX in float32, float16 and int8, archives of `torch.export`, OpenVINO, and LiteRT.
"""

import contextlib
import copy
import hashlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd.files.writing import whole
from kd.nets.pretrained_weights import Normalization
from kd.shape import Shape

INPUT, OUTPUT = "images", "logits"
SCHEMA = 1
BLANK = "0" * 64  # placeholder for a checksum not yet known
DYNAMIC = ({0: torch.export.Dim("batch")},)


class NormalizedNet(nn.Module):
    """Net with built-in normalisation: float32 [B, C, H, W] in [0, 1] to logits [B, classes].

    Args:
        normalization: mean and standard deviation per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.net = net
        for name, values in zip(("mean", "std"), normalization, strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [B, classes] for images [B, C, H, W] in [0, 1]."""
        logits: Tensor = self.net((images - self.mean) / self.std)
        return logits


def whole_net(net: nn.Module, normalization: Normalization | None) -> nn.Module:
    """Copy a net for export: on the CPU, in evaluation mode, with its normalisation.

    Args:
        normalization: None for a net that is fed normalised images.
    """
    copied = copy.deepcopy(net).cpu().eval()
    return copied if normalization is None else NormalizedNet(copied, normalization).eval()


def example(shape: Shape) -> Tensor:
    """Make two images [2, C, H, W] for tracing: exporters treat a batch of one as constant."""
    return torch.zeros(2, *shape.pixels)


def write_pt2(
    net: nn.Module,
    shape: Shape,
    normalization: Normalization | None,
    path: Path,
    *,
    metadata: Mapping[str, str],
) -> Path:
    """Write a net as an archive of `torch.export`; arguments as for `write_onnx`.

    The metadata is its file `kd.json`; `torch.export.load(path, extra_files={"kd.json": ""})` fills
    it in.
    """
    with _quiet():
        program = torch.export.export(
            whole_net(net, normalization), (example(shape),), dynamic_shapes=DYNAMIC
        )
        with whole(path) as temporary, temporary.open("wb") as file:
            torch.export.save(program, file, extra_files={"kd.json": json.dumps(dict(metadata))})
    return path


def write_onnx(
    net: nn.Module,
    shape: Shape,
    normalization: Normalization | None,
    path: Path,
    *,
    metadata: Mapping[str, str],
) -> Path:
    """Write a net as one ONNX file for any batch size and pixels in [0, 1].

    Its input is `images`, float32 [batch, channels, size, size]; its output `logits`, float32
    [batch, classes].

    Args:
        normalization: mean and standard deviation per channel, built into the graph. None: the
            caller normalises.
        metadata: stored in the file's metadata, as strings.
    """
    with _quiet():
        program = torch.onnx.export(
            whole_net(net, normalization),
            (example(shape),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=DYNAMIC,
            verbose=False,
        )
    assert program is not None
    return _save(program.model_proto, path, metadata)


def quantize(source: Path, path: Path, calibration: Iterator[np.ndarray[Any, Any]]) -> Path:
    """Quantize one of our ONNX files to int8.

    Static quantization with weights per channel and activation ranges from calibration. It is
    written as pairs of quantize and dequantize (QDQ), which ONNX Runtime fuses into int8 kernels.

    Args:
        source: the float32 file; its metadata is kept.
        calibration: float32 [B, C, H, W] in [0, 1]; a few hundred training images.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            images = next(calibration, None)
            return None if images is None else {INPUT: images}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        made = Path(folder) / "int8.onnx"
        quant_pre_process(source, prepared)
        quantize_static(
            prepared,
            made,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"QDQKeepRemovableActivations": False},
        )
        model = onnx.load(made)
        return _save(
            model, path, {each.key: each.value for each in onnx.load(source).metadata_props}
        )


def halve(source: Path, path: Path) -> Path:
    """Convert one of our ONNX files to float16 inside; it takes and gives float32 as before.

    Args:
        source: the float32 file; its metadata is kept.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    about = {each.key: each.value for each in model.metadata_props}
    with _quiet():
        return _save(convert_float_to_float16(model, keep_io_types=True), path, about)


def write_openvino(source: Path, path: Path) -> Path:
    """Convert one of our ONNX files to OpenVINO's `.xml`, with the weights in a `.bin` beside it.

    Args:
        source: the float32 file; its metadata goes into the model's `rt_info` under `kd`.
    """
    import onnx
    import openvino

    model = openvino.Core().read_model(str(source))
    for each in onnx.load(source).metadata_props:
        model.set_rt_info(each.value, ["kd", each.key])
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "net.xml"
        openvino.save_model(model, str(made), compress_to_fp16=False)
        for kind in (".bin", ".xml"):
            with whole(path.with_suffix(kind)) as temporary:
                temporary.write_bytes(made.with_suffix(kind).read_bytes())
    return path


def write_litert(
    net: nn.Module, shape: Shape, normalization: Normalization | None, path: Path
) -> Path:
    """Write a net as a LiteRT file (`.tflite`) for one image [1, C, H, W]; see `write_onnx`."""
    import litert_torch

    one = (torch.zeros(1, *shape.pixels),)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "net.tflite"
        litert_torch.convert(whole_net(net, normalization), one).export(str(made))
        with whole(path) as temporary:
            temporary.write_bytes(made.read_bytes())
    return path


def write_format(
    kind: str,
    net: nn.Module,
    shape: Shape,
    normalization: Normalization | None,
    path: Path,
    *,
    metadata: Mapping[str, str],
    source: Callable[[], Path],
    calibration: Callable[[], Iterator[np.ndarray[Any, Any]]],
) -> None:
    """Write a net in one of `kd.shipping.requests.FORMATS`.

    Args:
        source: gives the float32 ONNX file that other formats are made of.
        calibration: gives the images of `quantize`.
    """
    about = (net, shape, normalization, path)
    if kind == "onnx":
        write_onnx(*about, metadata=metadata)
    elif kind == "pt2":
        write_pt2(*about, metadata=metadata)
    elif kind == "litert":
        write_litert(*about)
    elif kind == "int8":
        quantize(source(), path, calibration())
    else:
        {"fp16": halve, "openvino": write_openvino}[kind](source(), path)


def _save(model: Any, path: Path, metadata: Mapping[str, str]) -> Path:
    """Write an ONNX model as one file, with its checksum as `sha256` in the metadata."""
    import onnx

    onnx.helper.set_model_props(model, {**metadata, "sha256": json.dumps(BLANK)})
    content = model.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    with whole(path) as temporary:
        temporary.write_bytes(digest.encode().join(content.rsplit(BLANK.encode(), 1)))
    return path


def is_intact(path: Path, digest: str) -> bool:
    """Verify the checksum of one of our ONNX files.

    Args:
        digest: its `sha256`, computed with `BLANK` in its place.
    """
    content = BLANK.encode().join(path.read_bytes().rsplit(digest.encode(), 1))
    return hashlib.sha256(content).hexdigest() == digest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress messages of exporter and quantizer.

    Errors still raise.
    """
    loud = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(loud)
