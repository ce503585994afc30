"""Student that reuses its teacher's layers after the last maps."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from kd.errors import UserError
from kd.nets.build import build_net
from kd.nets.layer_paths import FeaturePaths, study
from kd.nets.pairing import default_taps
from kd.nets.splice import CutError, after, splice
from kd.shape import ImageSize, Shape


class SimKD(nn.Module):
    """The student's body, a projector to the teacher's channels, and the teacher's last layers.

    Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier", section 3. The
    projector is a 1x1, a 3x3 and a 1x1 convolution, each with batch norm and ReLU. It follows the
    student's last maps, average-pooled first where they are larger than the teacher's. The
    teacher's norm, activation, pooling and last layer come next. They are frozen, and their norms
    keep the teacher's statistics.

    Where the teacher's maps have negative values, as before WRN's last norm, the projector's last
    ReLU is left out. The paper has no such teachers.

    Input [B, in_channels, image_size, image_size], output logits [B, num_classes].

    Args:
        student, teacher: `_target_` and keywords of each net; the teacher's weights are not loaded
            here.
        factor: ratio of the projector's output to its middle channels.

    Raises:
        ValueError: the student does not end in global average pooling and one linear layer. Or the
            teacher has no last maps, a net cannot be cut there, or the student should start from
            pretrained weights.
    """

    def __init__(
        self,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any],
        num_classes: int,
        in_channels: int,
        image_size: ImageSize,
        factor: int = 2,
    ) -> None:
        super().__init__()
        shape = Shape(in_channels, image_size, num_classes)
        if student.get("pretrained"):
            raise ValueError("student.net.pretrained: this method's student starts from scratch")
        net = build_net(student, shape, "student.net", load=False, trained=True)
        if isinstance(own := getattr(net, "normalization", None), tuple):
            self.normalization = own
        other = build_net(teacher, shape, "teacher.net", load=False)
        ours = _last_maps(net, shape, "student", averaged=True)
        theirs = _last_maps(other, shape, "teacher", averaged=False)
        (channels, *size) = ours.shapes[0]
        (wide, *target) = theirs.shapes[0]
        pool = [nn.AdaptiveAvgPool2d(tuple(target))] if size[0] > target[0] else []
        path = ours.feats[0].path
        cut = theirs.feats[0].path
        maps, logits = _answer(other, cut, shape)
        projector = _projector(channels, wide, factor, negative=bool(maps.min() < 0))
        _replace(net, path, nn.Sequential(net.get_submodule(path), *pool, projector))
        try:
            self.net, self.taken = splice(
                *(net, path, other, cut),
                lambda name: str(ours.head) if name == theirs.head else f"teacher.{name}",
            )
        except CutError as error:
            raise ValueError(
                f"loss.net: cannot reuse the teacher's last layers: {error}"
            ) from error
        small = size if size[0] < target[0] else target
        _try_out(self.net, path, maps, logits, (wide, *small))
        self.taps = (f"net.{path}",)
        for name in self.taken:
            _at(self.net, name).requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, image_size, image_size] -> logits [B, num_classes]."""
        logits: Tensor = self.net(x)
        return logits

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the teacher's layers stay in evaluation mode."""
        super().train(mode)
        for name in self.taken:
            if isinstance(module := _at(self.net, name), nn.Module):
                module.eval()
        return self

    def inherit(self, state: Mapping[str, Tensor]) -> None:
        """Load the teacher's layers after the last maps from its state dict.

        Raises:
            UserError: the state belongs to another net.
        """
        own = self.net.state_dict()
        for ours, theirs in self.taken.items():
            for name, tensor in own.items():
                if name != ours and not name.startswith(f"{ours}."):
                    continue
                source = theirs + name.removeprefix(ours)
                if source not in state or state[source].shape != tensor.shape:
                    raise UserError(
                        "loss.net.teacher: is another net than the teacher, which has no "
                        f"such {source}"
                    )
                own[name] = state[source]
        self.net.load_state_dict(own)


def _last_maps(net: nn.Module, shape: Shape, role: str, averaged: bool) -> FeaturePaths:
    """Find a net's last maps.

    Args:
        averaged: whether the last layer must get their average.
    """
    taps = default_taps(net, shape)
    points = study(net, taps[-1:], shape, where=f"{role}.net")
    found = points.shapes[0] if points.shapes else ()
    if len(found) != 3 or (averaged and points.width != found[0]):
        raise ValueError(
            f"{role}.net: {type(net).__name__} does not end in the average of its last maps "
            f"and one linear layer (maps {list(found)}, the last layer gets {points.width} "
            "numbers)"
        )
    return points


def _answer(net: nn.Module, path: str, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return a layer's output for two random images, and the logits."""
    seen: list[Tensor] = []
    hook = net.get_submodule(path).register_forward_hook(
        lambda *given: seen.append(given[2].clone())
    )
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits: Tensor = net.eval()(torch.randn(2, *shape.pixels))
    finally:
        hook.remove()
    return seen[-1], logits


def _try_out(
    net: fx.GraphModule, path: str, maps: Tensor, logits: Tensor, size: tuple[int, ...]
) -> None:
    """Feed the teacher's own maps to its reused layers, then maps of the student's size.

    Raises:
        ValueError: the result differs from the teacher's, or there is none.
    """
    net.eval()
    with torch.no_grad():
        if not torch.allclose(after(net, path, maps.clone()), logits, rtol=1e-4, atol=1e-5):
            raise ValueError(
                "teacher.net: does something after its last maps that cannot be taken over"
            )
        try:
            after(net, path, maps.new_zeros(2, *size))
        except RuntimeError as error:
            raise ValueError(
                f"student.net: its last maps are of {size[1]}x{size[2]} pixels, which the "
                "teacher's last layers cannot take; they are made for "
                f"{maps.shape[2]}x{maps.shape[3]}"
            ) from error


def _projector(channels: int, wide: int, factor: int, negative: bool) -> nn.Sequential:
    middle = max(1, wide // factor)
    return nn.Sequential(
        *(
            nn.Conv2d(channels, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
        ),
        *(
            nn.Conv2d(middle, middle, 3, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
        ),
        *(nn.Conv2d(middle, wide, 1, bias=False), nn.BatchNorm2d(wide)),
        *(() if negative else (nn.ReLU(inplace=True),)),
    )


def _replace(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)


def _at(net: nn.Module, path: str) -> Any:
    """Return a module or a parameter by path."""
    parent, _, name = path.rpartition(".")
    return getattr(net.get_submodule(parent), name)
