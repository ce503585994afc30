"""Settings that make up for rare classes, and the shares that these go by."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kd.errors import UserError

# Keywords of data, beside `class_weights`
BALANCE = ("sampler", "logit_adjustment", "focal_gamma")


def class_shares(labels: Tensor, num_classes: int) -> Tensor:
    """Return the share of each class in the known labels, above 0; float64 [num_classes].

    Args:
        labels: int64 [N], below 0 where unknown.
    """
    known = labels[labels >= 0]
    counts = torch.bincount(known, minlength=num_classes).clamp(min=1)
    return counts.double() / len(known)


def check_balance(settings: Mapping[str, object]) -> None:
    """Refuse several settings that each make up for rare classes.

    Raises:
        UserError: names two of them.
    """
    known = ("class_weights", "sampler", "logit_adjustment")
    if len(used := [name for name in known if settings[name] is not None]) > 1:
        raise UserError(
            f"data.{used[1]}: found {settings[used[1]]!r} beside data.{used[0]}, and each of "
            f"them makes up for rare classes alone; accepted is one of {', '.join(known)}"
        )
