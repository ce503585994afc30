"""A Comprehensive Overhaul of Feature Distillation (Heo et al., 2019)."""

import torch
from torch import Tensor, nn

from kd.losses._maps import as_map, channels, connector, same_size


def ofd_loss(preacts_s: list[Tensor], preacts_t: list[Tensor], margins: list[Tensor]) -> Tensor:
    """Partial squared distance of student values to the teacher's values after a margin ReLU.

    Heo et al. 2019, section 3: the teacher's value is max(t, m), where m < 0 is the channel's
    margin. A student value below a non-positive teacher value costs nothing. Values are summed over
    an image and averaged over the batch. As in the authors' code the last layer has weight 1 and
    each earlier one half the weight of the next.

    Args:
        preacts_s: student pre-activations after the connectors, [B, C, H, W] each.
        preacts_t: teacher pre-activations of the same shapes; detached.
        margins: [C] each, <= 0.

    Returns:
        scalar >= 0; 0 at equal values, teacher's after the margin ReLU.
    """
    total = preacts_s[0].new_zeros(())
    for i, (s, t, margin) in enumerate(zip(preacts_s, preacts_t, margins, strict=True), start=1):
        target = torch.maximum(t.detach(), margin.to(s)[:, None, None])
        counts = (s > target) | (target > 0)
        total = (
            total
            + 2.0 ** (i - len(preacts_s)) * ((s - target) * counts).pow(2).flatten(1).sum(1).mean()
        )
    return total


class OFD(nn.Module):
    """The loss with its connectors (1x1 convolution and batch norm) and the teacher's margins.

    A channel's margin is the mean of its negative values over the training images seen so far. The
    authors compute it from batch-norm parameters, which not every net has. All ranks use the margin
    of the first rank.
    """

    def __init__(
        self, shapes_s: tuple[tuple[int, ...], ...], shapes_t: tuple[tuple[int, ...], ...]
    ) -> None:
        super().__init__()
        sizes = [(channels(s), channels(t)) for s, t in zip(shapes_s, shapes_t, strict=True)]
        self.connectors = nn.ModuleList(connector(c_s, c_t) for c_s, c_t in sizes)
        for i, (_, c_t) in enumerate(sizes):
            self.register_buffer(f"sum_{i}", torch.zeros(c_t, dtype=torch.float64))
            self.register_buffer(f"count_{i}", torch.zeros(c_t, dtype=torch.float64))

    def forward(self, preacts_s: list[Tensor], preacts_t: list[Tensor]) -> Tensor:
        """Compute `ofd_loss` over all pairs of maps [B, C, H, W] at the smaller size; a scalar."""
        pairs = [same_size(as_map(s), as_map(t)) for s, t in zip(preacts_s, preacts_t, strict=True)]
        connected = [connect(s) for connect, (s, _) in zip(self.connectors, pairs, strict=True)]
        margins = [self._margin(i, t) for i, (_, t) in enumerate(pairs)]
        return ofd_loss(connected, [t for _, t in pairs], margins)

    @torch.no_grad()
    def _margin(self, i: int, t: Tensor) -> Tensor:
        total = self.get_buffer(f"sum_{i}")
        count = self.get_buffer(f"count_{i}")
        if self.training:
            total += t.clamp(max=0).double().sum((0, 2, 3))
            count += (t < 0).sum((0, 2, 3))
        return total / count.clamp(min=1)
