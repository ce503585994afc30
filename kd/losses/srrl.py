"""Knowledge Distillation via Softmax Regression Representation Learning (Yang et al., 2021)."""

from torch import Tensor, nn

from kd.losses._maps import as_map, channels, connector


def srrl_loss(embedding_s: Tensor, pooled_t: Tensor, answers: Tensor, logits_t: Tensor) -> Tensor:
    """Mean squared difference of the embeddings, plus that of what the teacher's last layer makes of them.

    Yang et al. 2021, section 3 with the squared distance of logits, as in the authors' code.

    Args:
        embedding_s: the student's, through the connector, [B, D].
        pooled_t: the teacher's, [B, D].
        answers: the teacher's last layer's logits for the student's embedding, [B, C].
        logits_t: the teacher's, [B, C]; no gradient flows to it, nor to `pooled_t`.

    Returns:
        scalar >= 0; at equal embeddings 0.
    """
    return (embedding_s - pooled_t.detach()).pow(2).mean() + (answers - logits_t.detach()).pow(
        2
    ).mean()


class SRRL(nn.Module):
    """The loss with its connector on the student's last tap: 1x1 convolution, batch norm, ReLU; then the mean."""

    def __init__(self, shapes_s: tuple[tuple[int, ...], ...], width_t: int) -> None:
        super().__init__()
        self.connector = connector(channels(shapes_s[-1]), width_t).append(nn.ReLU())

    def forward(
        self, feats_s: list[Tensor], pooled_t: Tensor, logits_t: Tensor, head_t: nn.Module
    ) -> Tensor:
        """`srrl_loss`; the teacher's last layer `head_t` does not learn, but hands the gradient on. A scalar."""
        embedding: Tensor = self.connector(as_map(feats_s[-1])).mean((2, 3))
        shaped = embedding[:, :, None, None] if isinstance(head_t, nn.Conv2d) else embedding
        return srrl_loss(embedding, pooled_t, head_t(shaped).flatten(1), logits_t)
