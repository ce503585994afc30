"""ONNX file from elsewhere as a net; ONNX Runtime is an extra (`pip install "kd[export]"`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from kd.errors import UserError
from kd.files.answer_tables import SMALLEST
from kd.files.onnx_file import check_whole
from kd.nets.resized_buffers import ResizedBuffers
from kd.nets.weights import OutputChoice
from kd.shape import ImageSize, height_and_width

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Gives = Literal["logits", "probabilities"]


def open_session(file: str | bytes) -> "InferenceSession":
    """Open an ONNX file, by path or content, on the CPU with as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _statistics(about: Mapping[str, object]) -> tuple[tuple[float, ...], ...]:
    """Return mean and standard deviation per channel of a file by kd.export."""
    return tuple(tuple(TypeAdapter(list[float]).validate_python(about[k])) for k in ("mean", "std"))


class OnnxGraph(ResizedBuffers):
    """ONNX file as a net that cannot be trained: x [B, C, H, W] -> logits [B, num_classes].

    The file's bytes are in its state dict, so that a finished run needs the file no more. Before
    they are loaded it gives zeros.

    Args:
        output: name of the graph's output to take; None if it has one, or one called `logits`.
        gives: what that output is; None finds out by asking about two images.
    """

    content: Tensor
    taken: Tensor
    probable: Tensor
    numbers: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: ImageSize,
        output: str | None = None,
        gives: Gives | None = None,
    ) -> None:
        super().__init__()
        if gives not in (None, *get_args(Gives)):
            accepted = ", ".join(get_args(Gives))
            raise UserError(f"teacher.net.gives: found {gives!r}; accepted are null, {accepted}")
        self.size = (in_channels, *height_and_width(image_size))
        self.num_classes = num_classes
        self.output = output
        self.gives = gives
        self.register_buffer("content", torch.zeros(1, dtype=torch.uint8))
        self.register_buffer("taken", torch.arange(num_classes))
        self.register_buffer("probable", torch.tensor(False))
        self.register_buffer("numbers", torch.tensor(0))
        self._session: InferenceSession | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_session": None}  # a session cannot be copied

    @property
    def parameter_count(self) -> int:
        """Numbers in the file's tensors."""
        return int(self.numbers)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Compute float32 logits [B, num_classes] for x [B, C, H, W]."""
        if len(self.content) == 1 or x.is_meta:
            return x.new_zeros(len(x), self.num_classes)
        answers = self._ask(x)[:, self.taken]
        return answers.clamp(min=SMALLEST).log() if self.probable else answers

    def _ask(self, x: Tensor) -> Tensor:
        """Ask the graph about x [B, C, H, W], in batches of its size if that is fixed."""
        if self._session is None:  # not opened since the state was loaded
            self._session = open_session(self.content.cpu().numpy().tobytes())
        session = self._session
        (given,) = session.get_inputs()
        half = np.float16 if given.type == "tensor(float16)" else np.float32
        size = given.shape[0] if isinstance(given.shape[0], int) else max(1, len(x))
        found = []
        for part in torch.split(x.detach().float().cpu(), size):
            whole = torch.zeros(size, *self.size)
            whole[: len(part)] = part
            (answer,) = session.run(
                [self._output(session)], {given.name: whole.numpy().astype(half)}
            )
            found.append(torch.from_numpy(answer.astype(np.float32))[: len(part)])
        return torch.cat(found).to(x.device)

    def _output(self, session: "InferenceSession") -> str:
        """Return the name of the output to take.

        Raises:
            ValueError: there is none of that name, or no name was given and there are several.
        """
        names = [each.name for each in session.get_outputs()]
        wanted = self.output if self.output or len(names) > 1 else names[0]
        if wanted is None and "logits" in names:
            return "logits"
        if wanted not in names:
            raise ValueError(
                f"teacher.net.output: found {wanted!r}, its outputs are {', '.join(names)}"
            )
        return str(wanted)

    def read_file(self, path: Path, where: str, outputs: OutputChoice | None) -> None:
        """Take over an ONNX file, after asking it about two images.

        A file by `kd.export` normalises inside, or says how: see `normalization`.

        Args:
            where: config key of the path, for messages.
            outputs: of its outputs those of the data's classes; None if these are all.

        Raises:
            UserError: it is no ONNX file, or takes or gives something else than is needed.
        """
        try:
            facts = check_whole(path, where, "a file with its tensors inside")
            content = path.read_bytes()
            self._session = session = open_session(content)
            self.content = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            self._check_input(session, path, where)
            answers = self._ask(torch.rand(2, *self.size, generator=torch.manual_seed(0)))
            about = facts.metadata
            self.numbers = torch.tensor(facts.parameters)
        except ImportError as error:
            raise UserError(
                f"{where}: {error.name} is not installed: pip install 'kd[export]'"
            ) from error
        except UserError:
            raise
        except Exception as error:  # the runtime's own exceptions, all about the file
            reason = str(error).strip().partition("\n")[0][:200]
            raise UserError(f"{where}: {path} cannot be used as an ONNX file: {reason}") from error
        self._choose(answers, outputs, path, where)
        if "normalizes" in about:
            plain = ((0.0,) * self.size[0], (1.0,) * self.size[0])
            self.normalization = plain if about["normalizes"] else _statistics(about)

    def _check_input(self, session: "InferenceSession", path: Path, where: str) -> None:
        inputs = session.get_inputs()
        shape = list(inputs[0].shape) if len(inputs) == 1 else []
        fixed = [(a, b) for a, b in zip(shape[1:], self.size, strict=False) if isinstance(a, int)]
        if len(shape) != 4 or any(a != b for a, b in fixed):
            takes = "; ".join(f"{each.name} {each.shape}" for each in inputs)
            raise UserError(
                f"{where}: {path.name} takes {takes}, the data gives images "
                f"{['N', *self.size]}; data.image_size and data.channels set these"
            )

    def _choose(
        self, answers: Tensor, outputs: OutputChoice | None, path: Path, where: str
    ) -> None:
        count = outputs.of if outputs else self.num_classes
        if tuple(answers.shape) != (2, count):
            advice = f"; {where.removesuffix('path')}classes names the file's, in order"
            raise UserError(
                f"{where}: {path.name} gives {list(answers.shape)} for two images, needed are "
                f"[2, {count}] for {count} classes{advice}"
            )
        if not torch.isfinite(answers).all():
            raise UserError(
                f"{where}: {path.name} answers NaN or infinity for random pixels in [0, 1]; its "
                "weights are damaged, or it wants other pixels"
            )
        if self.gives == "probabilities" and bool((answers < 0).any()):
            raise UserError(
                f"teacher.net.gives: found probabilities, but {path.name} gives "
                f"{float(answers.min()):.3g}; accepted is logits, or null to find out"
            )
        if outputs:
            self.taken = torch.tensor(list(outputs.taken))
        sums = answers.sum(1)
        probable = bool((answers >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())
        self.probable = torch.tensor(
            probable if self.gives is None else self.gives == "probabilities"
        )
