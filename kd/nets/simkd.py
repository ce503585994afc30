"""A student that ends in its teacher's last layer."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kd.errors import UserError
from kd.nets.build import build_net
from kd.nets.layer_paths import Points, study
from kd.nets.pairing import default_taps
from kd.shape import Shape


class SimKD(nn.Module):
    """The student's body, a projector to the teacher's channels, and the teacher's last layer, which does not learn.

    Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier", section 3: the projector is a 1x1, a
    3x3 and a 1x1 convolution, each with batch norm and ReLU. It comes after the student's last maps (its last tap),
    averaged down first where they are larger than the teacher's; the student's own pooling follows.

    Input [B, in_channels, image_size, image_size], output logits [B, num_classes].

    Args:
        student, teacher: what builds each net, `_target_` and keywords; of the teacher only the sizes are taken.
        factor: the projector is by so much narrower in the middle than at its end.

    Raises:
        ValueError: a net does not end in the average of its last maps and one linear layer; or the student is to start
            from pretrained weights.
    """

    def __init__(
        self,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any],
        num_classes: int,
        in_channels: int,
        image_size: int,
        factor: int = 2,
    ) -> None:
        super().__init__()
        shape = Shape(in_channels, image_size, num_classes)
        if student.get("pretrained"):
            raise ValueError("student.net.pretrained: this method's student starts afresh")
        self.net = build_net(student, shape, "student.net", load=False)
        if isinstance(own := getattr(self.net, "normalization", None), tuple):
            self.normalization = own
        other = build_net(teacher, shape, "teacher.net", load=False)
        ours, theirs = (
            _last_maps(net, shape, role)
            for net, role in ((self.net, "student"), (other, "teacher"))
        )
        (channels, *size), (wide, *target) = ours.shapes[0], theirs.shapes[0]
        pool = [nn.AdaptiveAvgPool2d(tuple(target))] if size[0] > target[0] else []
        path = ours.feats[0].path
        _replace(
            self.net,
            path,
            nn.Sequential(self.net.get_submodule(path), *pool, _projector(channels, wide, factor)),
        )
        self.taps = (f"net.{path}",)
        assert ours.head is not None  # or `_last_maps` had refused it
        assert theirs.head is not None
        head = nn.Linear(
            wide,
            num_classes,
            bias=getattr(other.get_submodule(theirs.head), "bias", None) is not None,
        )
        _replace(self.net, ours.head, head.requires_grad_(False))
        self.head, self.teachers_head = f"net.{ours.head}", theirs.head

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, image_size, image_size] -> logits [B, num_classes]."""
        logits: Tensor = self.net(x)
        return logits

    def inherit(self, state: Mapping[str, Tensor]) -> None:
        """Take the last layer over from a teacher's state dict.

        Raises:
            UserError: there is no such layer in it.
        """
        head = self.get_submodule(self.head)
        names = {name: f"{self.teachers_head}.{name}" for name in head.state_dict()}
        own = head.state_dict()
        if any(
            theirs not in state or state[theirs].shape != own[name].shape
            for name, theirs in names.items()
        ):
            raise UserError(
                f"loss.net.teacher: is another net than the teacher, which has no such {self.teachers_head}"
            )
        head.load_state_dict({name: state[theirs] for name, theirs in names.items()})


def _last_maps(net: nn.Module, shape: Shape, role: str) -> Points:
    """Where a net's last maps are, whose average its last layer gets."""
    taps = default_taps(net, shape)
    points = study(net, taps[-1:], shape, where=f"{role}.net")
    found = points.shapes[0] if points.shapes else ()
    if len(found) != 3 or points.width != found[0]:
        raise ValueError(
            f"{role}.net: {type(net).__name__} does not end in the average of its last maps and one linear layer "
            f"(maps {list(found)}, the last layer gets {points.width} numbers)"
        )
    return points


def _projector(channels: int, wide: int, factor: int) -> nn.Sequential:
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
        *(nn.Conv2d(middle, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)),
    )


def _replace(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)
