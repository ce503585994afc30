"""Cosine distance of embeddings, as in DistilBERT (Sanh et al., 2019)."""

from torch import Tensor, nn

from kd.losses._maps import unit


def cosine_features_loss(pooled_s: Tensor, pooled_t: Tensor) -> Tensor:
    """1 - cosine of the two nets' embeddings of an image, mean over the batch.

    Sanh et al. 2019, section 3: the cosine embedding loss, which aligns the directions of hidden
    states.

    Args:
        pooled_s: student embeddings, [B, D].
        pooled_t: teacher embeddings, [B, D]; detached.

    Returns:
        scalar in [0, 2]; 0 where the two agree up to a positive factor.
    """
    return 1 - (unit(pooled_s) * unit(pooled_t.detach())).sum(1).mean()


class CosineFeatures(nn.Module):
    """The loss, with a learned linear layer where the embeddings have unequal widths."""

    def __init__(self, width_s: int, width_t: int) -> None:
        super().__init__()
        self.fit = nn.Linear(width_s, width_t) if width_s != width_t else nn.Identity()

    def forward(self, pooled_s: Tensor, pooled_t: Tensor) -> Tensor:
        """Compute `cosine_features_loss` of pooled_s [B, D] and pooled_t [B, D_t]; a scalar."""
        return cosine_features_loss(self.fit(pooled_s), pooled_t)
