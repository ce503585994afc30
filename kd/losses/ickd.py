"""Exploring Inter-Channel Correlation for Diversity-Preserved Distillation (Liu et al., 2021)."""

from torch import Tensor, nn

from kd.losses._maps import as_map, channels, connector, unit


def ickd_loss(maps_s: Tensor, maps_t: Tensor) -> Tensor:
    """|| G_s - G_t ||_F^2 / C, mean over the batch.

    Liu et al. 2021, section 3.2 (ICKD-C): G = F F^T says how the channels F of an image go
    together. As in the authors' code rows of G are scaled to length 1 and the sum is divided by C;
    the paper divides by C^2.

    Args:
        maps_s: student maps, [B, C, H, W].
        maps_t: teacher maps, [B, C, h, w], of any height and width; detached.

    Returns:
        scalar >= 0; at equal maps 0.
    """
    difference = _correlation(maps_s) - _correlation(maps_t.detach())
    return difference.pow(2).sum((1, 2)).mean() / maps_s.shape[1]


def _correlation(maps: Tensor) -> Tensor:
    flat = maps.flatten(2)
    return unit(flat @ flat.transpose(1, 2), dim=2)


class ICKD(nn.Module):
    """The loss on the last pair of maps, with a 1x1 convolution and batch norm that give the
    student the teacher's channels.
    """

    def __init__(
        self, shapes_s: tuple[tuple[int, ...], ...], shapes_t: tuple[tuple[int, ...], ...]
    ) -> None:
        super().__init__()
        self.embed = connector(channels(shapes_s[-1]), channels(shapes_t[-1]))

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """Compute `ickd_loss` of the last maps [B, C, H, W]; a scalar."""
        return ickd_loss(self.embed(as_map(feats_s[-1])), as_map(feats_t[-1]))
