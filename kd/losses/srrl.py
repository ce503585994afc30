"""Knowledge Distillation via Softmax Regression Representation Learning (Yang et al., 2021)."""

from torch import Tensor, nn

from kd.losses._maps import as_map, channels, connector


def srrl_loss(embedding_s: Tensor, pooled_t: Tensor, answers: Tensor, logits_t: Tensor) -> Tensor:
    """Mean squared difference of the embeddings, plus that of the teacher's head applied to both.

    Yang et al. 2021, section 3, with the squared distance of logits as in the authors' code.

    Args:
        embedding_s: student embedding after the connector, [B, D].
        pooled_t: teacher embedding, [B, D]; detached.
        answers: logits of the teacher's head for the student's embedding, [B, C].
        logits_t: teacher logits, [B, C]; detached.

    Returns:
        scalar >= 0; at equal embeddings 0.
    """
    return (embedding_s - pooled_t.detach()).pow(2).mean() + (answers - logits_t.detach()).pow(
        2
    ).mean()


class SRRL(nn.Module):
    """The loss with its connector after the student's last map: 1x1 convolution, norm, ReLU,
    mean.
    """

    def __init__(self, shapes_s: tuple[tuple[int, ...], ...], width_t: int) -> None:
        super().__init__()
        self.connector = connector(channels(shapes_s[-1]), width_t).append(nn.ReLU())

    def forward(
        self, feats_s: list[Tensor], pooled_t: Tensor, logits_t: Tensor, head_t: nn.Module
    ) -> Tensor:
        """Compute `srrl_loss`; `head_t` is frozen but passes the gradient on.

        Args:
            feats_s: student feature maps, the last [B, C, H, W].
            pooled_t: teacher embedding, [B, D].
            logits_t: teacher logits, [B, C].
            head_t: last layer of the teacher.

        Returns:
            scalar.
        """
        embedding: Tensor = self.connector(as_map(feats_s[-1])).mean((2, 3))
        shaped = embedding[:, :, None, None] if isinstance(head_t, nn.Conv2d) else embedding
        return srrl_loss(embedding, pooled_t, head_t(shaped).flatten(1), logits_t)
