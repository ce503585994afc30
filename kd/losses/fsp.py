"""A Gift from Knowledge Distillation (Yim et al., 2017)."""

from itertools import pairwise

from torch import Tensor, nn

from kd.losses._maps import as_map, channels, same_size


def fsp_loss(feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
    """Mean squared difference of the two nets' flow matrices, summed over consecutive layers.

    Yim et al. 2017, eq. 1 and 2: G[i, j] is the pixel mean of channel i of one layer times channel
    j of the next. Where the two maps differ in size the larger is average-pooled (the paper
    max-pools).

    Args:
        feats_s: student feature maps, [B, C, H, W] each; at least two.
        feats_t: teacher feature maps with the same channel counts; detached.

    Returns:
        scalar >= 0; 0 where the two agree.

    Raises:
        ValueError: for fewer than two layers, or unequal channel counts.
    """
    if len(feats_s) < 2:
        raise ValueError(
            "fsp: needs two taps or more, as it compares the flow from each to the next"
        )
    total = feats_s[0].new_zeros(())
    for g_s, g_t in zip(_flows(feats_s), _flows([t.detach() for t in feats_t]), strict=True):
        if g_s.shape != g_t.shape:
            raise ValueError(
                f"fsp: flows of {tuple(g_s.shape[1:])} and {tuple(g_t.shape[1:])} channels"
            )
        total = total + (g_s - g_t).pow(2).mean()
    return total


def _flows(feats: list[Tensor]) -> list[Tensor]:
    maps = [as_map(f) for f in feats]
    found = []
    for a, b in pairwise(maps):
        one, two = (m.flatten(2) for m in same_size(a, b))
        found.append(one @ two.transpose(1, 2) / one.shape[2])
    return found


class FSP(nn.Module):
    """The loss, with a learned 1x1 convolution if the channel counts of the nets differ.

    The nets of the paper have equal channel counts and need none. Unless layers are named, the
    first flow is from the stem to the first stage, as in Tian et al. 2020.
    """

    stem = True

    def __init__(
        self, shapes_s: tuple[tuple[int, ...], ...], shapes_t: tuple[tuple[int, ...], ...]
    ) -> None:
        super().__init__()
        if len(shapes_s) < 2:
            raise ValueError(
                "needs two taps or more, as it compares the flow from each to the next; has "
                f"{len(shapes_s)}"
            )
        sizes = [(channels(s), channels(t)) for s, t in zip(shapes_s, shapes_t, strict=True)]
        self.fit = nn.ModuleList(
            nn.Conv2d(s, t, 1, bias=False) if s != t else nn.Identity() for s, t in sizes
        )

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """Compute `fsp_loss` over all maps [B, C, H, W]; a scalar."""
        return fsp_loss([fit(as_map(s)) for fit, s in zip(self.fit, feats_s, strict=True)], feats_t)
