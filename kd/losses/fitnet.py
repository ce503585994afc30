"""FitNets: Hints for Thin Deep Nets (Romero et al., 2015)."""

from torch import Tensor, nn

from kd.losses._maps import as_map, channels, connector, same_size


def fitnet_loss(hint_s: Tensor, hint_t: Tensor) -> Tensor:
    """Mean squared difference of the regressed student map and the teacher map.

    Romero et al. 2015, eq. 3, sum over the values of an image and halve. The mean follows later
    practice (Tian et al. 2020).

    Args:
        hint_s: student map after the regressor, [B, C, H, W].
        hint_t: teacher map of the same shape; detached.

    Returns:
        scalar >= 0.
    """
    return (hint_s - hint_t.detach()).pow(2).mean()


class FitNet(nn.Module):
    """The loss with its regressor (1x1 convolution, batch norm, ReLU) at the smaller map size.

    Args:
        tap: index of the pair of layers, from 0; None for the middle one, as in the paper.
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        tap: int | None = None,
    ) -> None:
        super().__init__()
        self.tap = (len(shapes_s) - 1) // 2 if tap is None else tap
        if not 0 <= self.tap < len(shapes_s):
            raise ValueError(
                f"tap: found {tap}, accepted are 0 to {len(shapes_s) - 1}, one for each pair "
                "of taps"
            )
        self.regressor = connector(
            channels(shapes_s[self.tap]), channels(shapes_t[self.tap])
        ).append(nn.ReLU())

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """Compute `fitnet_loss` at the chosen pair of maps [B, C, H, W]; a scalar."""
        hint_s, hint_t = same_size(as_map(feats_s[self.tap]), as_map(feats_t[self.tap]))
        return fitnet_loss(self.regressor(hint_s), hint_t)
