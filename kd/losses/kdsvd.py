"""Self-supervised Knowledge Distillation Using Singular Value Decomposition (Lee, Kim & Song,
2018).
"""

import torch
from torch import Tensor, nn

from kd.losses._maps import as_map, channels, unit

SPARE = 3  # extra student vectors to match, since their order may differ from the teacher's
WIDTH = 8.0  # of the radial basis function exp(-d^2 / 8)


def kdsvd_loss(feats_s: list[Tensor], feats_t: list[Tensor], rank: int = 1) -> Tensor:
    """Squared difference of the relations between main channel directions of consecutive layers.

    Lee, Kim & Song 2018, section 3: the first `rank` right singular vectors summarise each image's
    map [H * W, C]. Student vectors are matched to teacher vectors by absolute cosine. Both are
    scaled by the teacher's singular values (of length 1). exp(-(v_i - u_j)^2 / 8) relates channel i
    of a layer to channel j of the one before. Summed over channels and vectors, mean over the
    batch.

    Args:
        feats_s: student feature maps, [B, C, H, W] each; at least two.
        feats_t: teacher feature maps with the same channel counts; detached.
        rank: number of singular vectors, >= 1.

    Returns:
        scalar >= 0; 0 where the two agree.

    Raises:
        ValueError: for fewer than two layers, or unequal channel counts.
    """
    if len(feats_s) < 2:
        raise ValueError("kdsvd: needs two taps or more, as it relates each to the next")
    before: tuple[Tensor, Tensor] | None = None
    total = feats_s[0].new_zeros(())
    for s, t in zip(feats_s, feats_t, strict=True):
        a = as_map(s).flatten(2).transpose(1, 2)
        b = as_map(t.detach()).flatten(2).transpose(1, 2)
        if a.shape[2] != b.shape[2]:
            raise ValueError(
                f"kdsvd: {a.shape[2]} channels of the student's and {b.shape[2]} of the teacher's"
            )
        with torch.no_grad():
            sizes, theirs = _decompose(b, rank)
        ours = _align(_directions(a, rank + SPARE), theirs)
        sizes = unit(sizes)[:, None]
        now = ours * sizes, theirs * sizes
        if before is not None:
            difference = _relate(now[0], before[0]) - _relate(now[1], before[1])
            total = total + difference.pow(2).flatten(1).sum(1).mean()
        before = now
    return total


def _relate(v: Tensor, u: Tensor) -> Tensor:
    """Relate [B, C, k] and [B, D, k] -> [B, C, D, k]; surplus vectors of either are dropped."""
    k = min(v.shape[2], u.shape[2])
    return torch.exp(-(v[:, :, None, :k] - u[:, None, :, :k]).pow(2) / WIDTH)


def _decompose(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest singular values [B, k] and right vectors [B, C, k] of x [B, N, C]."""
    _, values, vectors = torch.linalg.svd(x, full_matrices=False)
    return values[:, :rank], vectors[:, :rank].transpose(1, 2)


def _directions(x: Tensor, rank: int) -> Tensor:
    """Return the first right singular vectors [B, C, k] of x [B, N, C], with a finite gradient.

    torch's own gradient divides by differences of squared singular values, which are 0 where two
    are equal. Here the vectors are computed without gradient. A term of value 0 then adds the
    first-order change of an eigenvector of x^T x, with d / (d^2 + tiny) in place of 1 / d.
    """
    with torch.no_grad():
        _, values, rows = torch.linalg.svd(x, full_matrices=False)
        square = values.pow(2)
        tiny = 1e-10 * square[:, :1, None].pow(2) + 1e-30
        v = rows[:, :rank].transpose(1, 2)
        known = rows.transpose(1, 2)
        gap = square[:, None, :rank] - square[:, :, None]  # [B, all, k]
        inverse = gap / (gap.pow(2) + tiny)
        # Towards directions of singular value 0
        rest = square[:, None, :rank] / (square[:, None, :rank].pow(2) + tiny)
    moved = x.transpose(1, 2) @ (x @ v)
    change = moved - moved.detach()
    within = known.transpose(1, 2) @ change
    turned: Tensor = v + known @ (inverse * within) + rest * (change - known @ within)
    return turned


def _align(ours: Tensor, theirs: Tensor) -> Tensor:
    """Match each teacher vector with the most similar student vector, sign included; [B, C, k]."""
    cosine = (unit(ours.detach()).transpose(1, 2) @ theirs).detach()
    best = cosine.abs().argmax(1, keepdim=True)
    sign = torch.where(cosine.gather(1, best) < 0, -1.0, 1.0).to(ours)
    return ours.gather(2, best.expand(-1, ours.shape[1], -1)) * sign


class KDSVD(nn.Module):
    """The loss, with a learned 1x1 convolution if the channel counts of the nets differ.

    Args:
        rank: number of singular vectors, >= 1.
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        rank: int = 1,
    ) -> None:
        super().__init__()
        if rank < 1 or len(shapes_s) < 2:
            raise ValueError(
                f"needs a rank from 1 and two taps or more; found rank {rank} and "
                f"{len(shapes_s)} taps"
            )
        self.rank = rank
        sizes = [(channels(s), channels(t)) for s, t in zip(shapes_s, shapes_t, strict=True)]
        self.fit = nn.ModuleList(
            nn.Conv2d(s, t, 1, bias=False) if s != t else nn.Identity() for s, t in sizes
        )

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """Compute `kdsvd_loss` over all maps [B, C, H, W]; a scalar."""
        return kdsvd_loss(
            [fit(as_map(s)) for fit, s in zip(self.fit, feats_s, strict=True)], feats_t, self.rank
        )
