"""Embeddings of a foundation model, matched without labels (AM-RADIO: Ranzinger et al., 2024)."""

import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import as_map, channels, connector, same_size, unit


def embedding_loss(pooled_s: Tensor, pooled_t: Tensor, cosine_share: float = 0.9) -> Tensor:
    """share * (1 - cosine) + (1 - share) * smooth L1, of the normalised embeddings; batch mean.

    Ranzinger et al. 2024, AM-RADIO, section 3.3, which takes both for maps with share 0.9. The
    smooth L1 is of embeddings scaled to a mean square of 1, mean over their entries.

    Args:
        pooled_s: student embeddings, projected to the teacher's width, [..., D].
        pooled_t: teacher embeddings, [..., D]; detached.
        cosine_share: weight of the cosine, in [0, 1].

    Returns:
        scalar >= 0; 0 at a positive multiple of the teacher's embeddings, once projected.
    """
    one = unit(pooled_s, -1)
    two = unit(pooled_t.detach(), -1)
    length = pooled_t.shape[-1] ** 0.5
    cosine = (one * two).sum(-1)
    smooth = F.smooth_l1_loss(one * length, two * length)
    return cosine_share * (1 - cosine).mean() + (1 - cosine_share) * smooth


class Embedding(nn.Module):
    """The loss with a learned projector; also of the last maps or tokens, if both nets have them.

    The projector has two linear layers with layer norm and GELU between, as in AM-RADIO. Maps go
    through a 1x1 convolution with batch norm, and are pooled to the smaller of both sizes.

    Args:
        cosine_share: as of `embedding_loss`.
        maps_weight: weight of the loss of the maps, >= 0; 0 leaves them out.
    """

    def __init__(
        self,
        width_s: int,
        width_t: int,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        cosine_share: float = 0.9,
        maps_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= cosine_share <= 1:
            raise ValueError(f"cosine_share: found {cosine_share}, accepted are 0 to 1")
        if maps_weight < 0:
            raise ValueError(f"maps_weight: found {maps_weight}, accepted are numbers from 0")
        self.cosine_share = cosine_share
        self.maps_weight = maps_weight
        self.project = nn.Sequential(
            nn.Linear(width_s, width_t),
            nn.LayerNorm(width_t),
            nn.GELU(),
            nn.Linear(width_t, width_t),
        )
        both = bool(shapes_s and shapes_t) and min(len(shapes_s[-1]), len(shapes_t[-1])) > 1
        self.fit: nn.Module | None = None
        if both and maps_weight:
            self.fit = connector(channels(shapes_s[-1]), channels(shapes_t[-1]))

    def forward(
        self, feats_s: list[Tensor], feats_t: list[Tensor], pooled_s: Tensor, pooled_t: Tensor
    ) -> Tensor:
        """Compute `embedding_loss` of the embeddings, plus that of the last maps; a scalar.

        Args:
            feats_s, feats_t: features of the hooked layers, the last [B, C, H, W] or [B, N, C].
            pooled_s, pooled_t: embeddings, [B, D_s] and [B, D_t].
        """
        loss = embedding_loss(self.project(pooled_s), pooled_t, self.cosine_share)
        if self.fit is None:
            return loss
        one, two = same_size(self.fit(as_map(feats_s[-1])), as_map(feats_t[-1].detach()))
        places = embedding_loss(one.movedim(1, -1), two.movedim(1, -1), self.cosine_share)
        return loss + self.maps_weight * places
