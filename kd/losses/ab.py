"""Knowledge Transfer via Distillation of Activation Boundaries (Heo et al., 2019)."""

from torch import Tensor, nn

from kd.losses._maps import as_map, channels, connector, same_size


def ab_loss(preacts_s: list[Tensor], preacts_t: list[Tensor], margin: float = 1.0) -> Tensor:
    """Squared hinge that pushes each student neuron to the teacher's side of zero, by `margin`.

    Heo et al. 2019, section 3: (margin - s)^2 where the teacher's neuron is above 0 and s <=
    margin; (margin + s)^2 where it is not and s > -margin. Values are summed over an image and
    averaged over the batch. As in the authors' code the last layer has weight 1 and each earlier
    one half the weight of the next.

    Args:
        preacts_s: student pre-activations after the connectors, [B, C, H, W] each.
        preacts_t: teacher pre-activations of the same shapes; detached.
        margin: mu of the paper, > 0.

    Returns:
        scalar >= 0. Equal inputs do not give 0: values within the margin are pushed out of it.
    """
    total = preacts_s[0].new_zeros(())
    for i, (s, t) in enumerate(zip(preacts_s, preacts_t, strict=True), start=1):
        on = t.detach() > 0
        short = ((margin - s).clamp(min=0) * on + (margin + s).clamp(min=0) * ~on).pow(2)
        total = total + 2.0 ** (i - len(preacts_s)) * short.flatten(1).sum(1).mean()
    return total


class AB(nn.Module):
    """The loss with one connector per layer: 1x1 convolution and batch norm.

    Args:
        margin: > 0.
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        margin: float = 1.0,
    ) -> None:
        super().__init__()
        if margin <= 0:
            raise ValueError(f"margin: found {margin}, accepted is a number above 0")
        self.margin = margin
        self.connectors = nn.ModuleList(
            connector(channels(s), channels(t)) for s, t in zip(shapes_s, shapes_t, strict=True)
        )

    def forward(self, preacts_s: list[Tensor], preacts_t: list[Tensor]) -> Tensor:
        """Compute `ab_loss` over all pairs of maps [B, C, H, W] at the smaller size; a scalar."""
        pairs = [same_size(as_map(s), as_map(t)) for s, t in zip(preacts_s, preacts_t, strict=True)]
        connected = [connect(s) for connect, (s, _) in zip(self.connectors, pairs, strict=True)]
        return ab_loss(connected, [t for _, t in pairs], self.margin)
