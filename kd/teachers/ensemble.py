"""Several nets that act as one teacher."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kd.nets.build import build_net
from kd.shape import ImageSize, Shape

Average = Literal["logits", "probabilities"]


class Ensemble(nn.Module):
    """Weighted mean of several nets; x [B, C, H, W] in [0, 1] -> logits [B, num_classes].

    Each member gets the images under its own normalisation, which is part of the state dict.

    Args:
        members: `_target_` and keywords of each net.
        average: `logits`, sum_i w_i z_i; or `probabilities`, T * log(sum_i w_i softmax(z_i / T)).
            The softmax of the latter at T is the mean of the members' probabilities (Hinton,
            Vinyals & Dean 2015, section 3: arithmetic mean).
        weights: one per member, > 0; divided by their sum. None for equal ones.
        temperature: T of `probabilities`, > 0.

    Raises:
        ValueError: no members, or not one weight per member.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        members: Sequence[Mapping[str, object]],
        num_classes: int,
        in_channels: int,
        image_size: ImageSize,
        average: Average = "logits",
        weights: Sequence[float] | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        weights = [1.0] * len(members) if weights is None else weights
        if not members or len(weights) != len(members) or min(weights) <= 0:
            raise ValueError(
                f"weights: found {list(weights)}, needed is a number above 0 for each of "
                f"{len(members)}"
            )
        shape = Shape(in_channels, image_size, num_classes)
        self.members = nn.ModuleList(
            build_net(node, shape, f"members[{i}]", load=False) for i, node in enumerate(members)
        )
        self.average = average
        self.temperature = temperature
        self.weights = [weight / sum(weights) for weight in weights]
        # It takes unnormalised pixels
        self.normalization = (
            (0.0,) * in_channels,
            (1.0,) * in_channels,
        )
        self.register_buffer("mean", torch.zeros(len(members), in_channels, dtype=torch.float64))
        self.register_buffer("std", torch.ones(len(members), in_channels, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the mean of the members for x [B, C, H, W], by `average`; logits [B,
        num_classes].
        """
        logits: list[Tensor] = [
            # Like kd.data.views.normalize
            member((x - mean.to(x)[:, None, None]) / std.to(x)[:, None, None])
            for member, mean, std in zip(self.members, self.mean, self.std, strict=True)
        ]
        if len(logits) == 1:  # bit for bit: softmax and log would round
            return logits[0]
        if self.average == "logits":
            return torch.stack(
                [weight * z for weight, z in zip(self.weights, logits, strict=True)]
            ).sum(0)
        shares = [
            torch.log_softmax(z.double() / self.temperature, 1)
            + torch.tensor(weight, dtype=torch.float64).log()
            for weight, z in zip(self.weights, logits, strict=True)
        ]
        return (self.temperature * torch.stack(shares).logsumexp(0)).to(logits[0].dtype)

    def join(
        self,
        states: Sequence[Mapping[str, Tensor]],
        normalizations: Sequence[tuple[object, object]],
    ) -> None:
        """Load the members' weights and normalisations, in their order."""
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)
        self.mean.copy_(torch.tensor([mean for mean, _ in normalizations], dtype=torch.float64))
        self.std.copy_(torch.tensor([std for _, std in normalizations], dtype=torch.float64))
