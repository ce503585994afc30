"""A Gift from Knowledge Distillation (Yim et al., 2017)."""

from itertools import pairwise

from torch import Tensor, nn

from kd.losses._maps import as_map, channels, same_size


def fsp_loss(feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
    """Mean squared difference of the two nets' flow matrices, summed over the steps from each tap to the next.

    Yim et al. 2017, eq. 1 and 2: G[i, j] is the mean over the pixels of channel i of a tap times channel j of the next.
    Of two taps of unequal size the larger is averaged down (the paper takes the maximum).

    Args:
        feats_s: the student's taps, [B, C, H, W] each; at least two.
        feats_t: the teacher's, with as many channels; no gradient flows to it.

    Returns:
        scalar >= 0; 0 where the two agree.

    Raises:
        ValueError: for fewer than two taps, or unequal numbers of channels.
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
    """The loss; where student and teacher have unequal numbers of channels, with a 1x1 convolution that learns.

    The paper's nets have as many channels as each other, and need none. Where nobody names taps, the first flow is that
    from the stem to the first stage, as in Tian et al. 2020.
    """

    stem = True

    def __init__(
        self, shapes_s: tuple[tuple[int, ...], ...], shapes_t: tuple[tuple[int, ...], ...]
    ) -> None:
        super().__init__()
        if len(shapes_s) < 2:
            raise ValueError(
                f"needs two taps or more, as it compares the flow from each to the next; has {len(shapes_s)}"
            )
        sizes = [(channels(s), channels(t)) for s, t in zip(shapes_s, shapes_t, strict=True)]
        self.fit = nn.ModuleList(
            nn.Conv2d(s, t, 1, bias=False) if s != t else nn.Identity() for s, t in sizes
        )

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """`fsp_loss` of all taps; a scalar."""
        return fsp_loss([fit(as_map(s)) for fit, s in zip(self.fit, feats_s, strict=True)], feats_t)
