"""Be Your Own Teacher: Self Distillation (Zhang et al., 2019)."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import as_map, channels, connector


def byot_loss(
    answers: list[Tensor],
    embeddings: list[Tensor],
    logits_s: Tensor,
    pooled_s: Tensor,
    target: Tensor,
    temperature: float = 3.0,
    share: float = 0.3,
    hint_weight: float = 0.03,
) -> Tensor:
    """Sum over early exits of (1 - share) * CE + share * soft CE + hint_weight * distance.

    Zhang et al. 2019, section 3: a net's own last answer teaches classifiers at its earlier layers.
    CE is that with the labels; soft CE that with the softmax of the last logits at temperature T,
    both means over the batch. The distance is the norm, over the batch, of an exit's embedding
    minus the last one. Numbers, the soft part without T^2 and that norm are from the authors' later
    code (its comment and its index disagree on which exit has no distance; here all have one, as in
    the paper).

    Args:
        answers: logits of the exits, [B, C] each.
        embeddings: of the exits, [B, D] each.
        logits_s: last logits of the net, [B, C]; detached.
        pooled_s: its last embedding, [B, D]; detached.
        target: class labels, int64 [B], or soft labels [B, C].
        temperature: T > 0.
        share: weight of the soft part, in [0, 1].

    Returns:
        scalar >= 0. Its minimum is not 0.
    """
    p = F.softmax(logits_s.detach() / temperature, dim=1)
    total = logits_s.new_zeros(())
    for logits, embedding in zip(answers, embeddings, strict=True):
        total = total + (1 - share) * F.cross_entropy(logits, target)
        total = total + share * F.cross_entropy(logits / temperature, p)
        distance = torch.linalg.vector_norm(embedding - pooled_s.detach())
        total = total + hint_weight * distance
    return total


class BYOT(nn.Module):
    """The loss with an exit at each layer but the last: two convolutions, mean, linear classifier.

    The first convolution shrinks the maps to the size of the last ones. It needs no teacher. The
    exits are trained beside the net and are no part of it.

    Args:
        middle: channels between the convolutions.

    Raises:
        ValueError: there are fewer than two layers.
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        width_s: int,
        num_classes: int,
        middle: int = 128,
    ) -> None:
        super().__init__()
        if len(shapes_s) < 2:
            raise ValueError("byot has its exits before the last layer, so it needs two or more")
        self.exits = nn.ModuleList()
        self.heads = nn.ModuleList()
        for shape in shapes_s[:-1]:
            cell = max(1, _side(shape) // _side(shapes_s[-1]))
            self.exits.append(
                nn.Sequential(
                    *(nn.Conv2d(channels(shape), middle, cell, stride=cell), nn.ReLU()),
                    *(connector(middle, width_s), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                )
            )
            self.heads.append(nn.Linear(width_s, num_classes))

    def forward(
        self,
        feats_s: list[Tensor],
        logits_s: Tensor,
        pooled_s: Tensor,
        target: Tensor,
        temperature: float = 3.0,
        share: float = 0.3,
        hint_weight: float = 0.03,
    ) -> Tensor:
        """Compute `byot_loss` of the exits for the features [B, ...] of all layers but the last."""
        embeddings = [e(as_map(f)) for e, f in zip(self.exits, feats_s[:-1], strict=True)]
        answers = [head(e) for head, e in zip(self.heads, embeddings, strict=True)]
        return byot_loss(
            answers, embeddings, logits_s, pooled_s, target, temperature, share, hint_weight
        )


def _side(shape: tuple[int, ...]) -> int:
    """Return the smaller side of a feature's maps, as `as_map` reads it."""
    if len(shape) == 3:
        return min(shape[1:])
    return isqrt(shape[0]) if len(shape) == 2 else 1
