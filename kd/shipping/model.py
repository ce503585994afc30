"""A trained model in use: pixels in, logits out, from any kind of file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from kd.data.decode import AS_STORED, DecodeError, Reading, decode
from kd.data.folder import plain
from kd.data.views import normalize, to_unit
from kd.errors import DamagedError, UserError, first_of, nearest_beside
from kd.files.header import HUB_WEIGHTS, STUDENT, header_of
from kd.files.onnx_file import check_whole
from kd.nets.build import normalization_of
from kd.nets.onnx_graph import open_session
from kd.runs.reader import open_run, read_student
from kd.shape import Shape, height_and_width, image_size
from kd.shipping.formats import INPUT, OUTPUT, SCHEMA, is_intact, whole_net

HUB = "hf:"
ACCEPTED = (
    f"a run's folder, its {STUDENT}, a folder of kd.publish, {HUB}USER/NAME, or an .onnx file of "
    "kd.export"
)
SLACK = 1e-3  # allowed overshoot of interpolation beyond [0, 1]


class Model(nn.Module):
    """Net with everything needed to apply it to images.

    Args:
        net: float32 [B, C, H, W] in [0, 1] to logits [B, classes].

    Attributes:
        classes: names, in the order of the logits.
        channels: 1 for gray images, 3 for RGB.
        image_size: side of the images in pixels, or height and width.
        reading: how image files are decoded, as in training.
        multilabel: whether an image may have several labels, or none.
    """

    def __init__(
        self,
        net: nn.Module,
        shape: Shape,
        classes: Sequence[str],
        reading: Reading = AS_STORED,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.multilabel = multilabel
        self.classes = tuple(classes)
        self.reading = reading
        self.channels = shape.channels
        self.image_size = shape.image_size
        self.register_buffer("_here", torch.zeros(0), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits of images.

        Args:
            images: [B, C, H, W], float in [0, 1] or uint8, at the model's size, as from `read`.

        Returns:
            float32 [B, classes], on the model's device.

        Raises:
            ValueError: wrong shape or range.
        """
        wanted = (self.channels, *height_and_width(self.image_size))
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images: found {list(images.shape)}, wanted are [B, {', '.join(map(str, wanted))}]"
            )
        x = to_unit(images) if images.dtype == torch.uint8 else images.float()
        if x.numel() and not (float(x.min()) >= -SLACK and float(x.max()) <= 1 + SLACK):
            low = float(x.min())
            high = float(x.max())
            raise ValueError(
                f"images: found {low:.4g} to {high:.4g}, wanted is [0, 1], not normalised, or uint8"
            )
        logits: Tensor = self.net(x.to(self._here.device))  # type: ignore[arg-type]
        return logits

    def probabilities(self, images: Tensor) -> Tensor:
        """Compute class probabilities, float32 [B, classes], for images [B, C, H, W].

        They sum to 1, unless an image may have several labels.
        Arguments as for the model itself.
        """
        logits: Tensor = self(images)
        return logits.sigmoid() if self.multilabel else logits.softmax(1)

    def read(self, *paths: str | Path) -> Tensor:
        """Decode image files as in training: uint8 [B, C, H, W].

        Raises:
            UserError: one cannot be decoded.
        """
        found = []
        for path in paths:
            try:
                found.append(decode(Path(path), self.image_size, self.channels, self.reading))
            except DecodeError as error:
                raise UserError(f"{path}: {error}") from error
        size = (0, self.channels, *height_and_width(self.image_size))
        return torch.from_numpy(np.stack(found)) if found else torch.zeros(size, dtype=torch.uint8)


class OnnxNet(nn.Module):
    """ONNX file as a net: float32 [B, C, H, W] to logits [B, classes], by ONNX Runtime on the CPU.

    It uses as many threads as PyTorch.

    Args:
        normalization: applied before the file; None if it is in the graph.
    """

    def __init__(
        self, path: Path, normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    ) -> None:
        super().__init__()
        self.session = open_session(str(path))
        self.normalization = normalization

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [B, classes] for x [B, C, H, W] in [0, 1]."""
        if self.normalization:
            x = normalize(x, *self.normalization)
        (logits,) = self.session.run([OUTPUT], {INPUT: x.cpu().numpy()})
        return torch.from_numpy(logits)


def load_model(
    path: str | Path, where: str, *, device: str = "cpu", trust: Sequence[str] = ()
) -> Model:
    """Load a model; see `kd.load`.

    Args:
        where: name of the path, for messages.
    """
    if str(path).startswith(HUB):
        from kd.shipping.hub import download

        path = download(str(path).removeprefix(HUB), where)
    found = Path(path).expanduser()
    if found.is_dir() and not (found / STUDENT).exists() and (found / HUB_WEIGHTS).is_file():
        found /= HUB_WEIGHTS  # of kd.publish
    if found.suffix == ".onnx" and found.is_file():
        if device != "cpu":
            raise UserError(f"device: found {device!r}; an ONNX file is asked on the cpu")
        return _of_onnx(found, where)
    if found.suffix == ".safetensors" and found.is_file():
        file = found
    elif found.is_file():
        raise UserError(f"{where}: {found.absolute()} is no model of ours; accepted are {ACCEPTED}")
    elif found.suffix in (".onnx", ".safetensors", ".pt2"):
        raise UserError(f"{where}: there is no file {found.absolute()}{nearest_beside(found)}")
    else:
        file = open_run(found, where, trust).folder / STUDENT
        if not file.is_file():
            raise UserError(
                f"{where}: the run {found.absolute()} has no student, so there is no {STUDENT} "
                f"in it"
            )
    net, shape, classes = read_student(file, where, trust)
    whole = whole_net(net, normalization_of(net, ((0.0,), (1.0,))))
    said = header_of(file) or {}
    several = said.get("multilabel") is True
    return _on(Model(whole, shape, classes, reading_of(said, file), several), device)


def reading_of(said: Mapping[str, Any], file: Path) -> Reading:
    """Return how a model's images are decoded, as its file says; older files use the default.

    Raises:
        UserError: it is invalid.
    """
    try:
        return TypeAdapter(Reading).validate_python(said.get("reading", {}))
    except ValidationError as error:
        raise UserError(f"{file}: its `reading` is damaged: {first_of(error)}") from None


def _on(model: Model, device: str) -> Model:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"device: found {device!r}, which is not available here: {reason}"
        ) from error


def _of_onnx(path: Path, where: str) -> Model:
    try:
        check_whole(path, where, ACCEPTED)
        net = OnnxNet(path)
        # A UnicodeDecodeError for an invalid byte
        said = net.session.get_modelmeta().custom_metadata_map
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{where}: {error.name} is not installed: pip install 'kd[export]'"
        ) from error
    except Exception as error:  # its own exceptions, all about the file
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{where}: {path} is no ONNX file, or a damaged one: {reason[:200]}"
        ) from error
    if "kd_schema" not in said:
        raise UserError(
            f"{where}: {path} is none of our ONNX files, which name their classes; accepted is "
            f"{ACCEPTED}"
        )
    try:
        about: dict[str, Any] = {key: json.loads(value) for key, value in said.items()}
        if about["kd_schema"] > SCHEMA:
            raise UserError(
                f"{where}: {path} was written by a later kd (schema {about['kd_schema']}, not "
                f"{SCHEMA})"
            )
        classes = [plain(name) for name in about["classes"]]
        if not about["normalizes"]:
            net.normalization = (tuple(about["mean"]), tuple(about["std"]))
        height, width = height_and_width(about["image_size"])
        shape = Shape(about["channels"], image_size(height, width), len(classes))
        reading = reading_of(about, path)
        logits = net(torch.zeros(2, *shape.pixels))
    except UserError:
        raise
    except Exception as error:  # metadata that does not fit the graph, or is not ours
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{where}: {path} is damaged: {reason[:200]}") from error
    if logits.shape != (2, len(classes)):
        raise UserError(
            f"{where}: {path} names {len(classes)} classes, but gives {list(logits.shape)} for "
            f"two images"
        )
    if not is_intact(path, str(about.get("sha256"))):
        raise DamagedError(f"{where}: {path} is damaged: its checksum is wrong")
    return Model(net, shape, classes, reading, about.get("multilabel") is True)
