"""Training Data-Efficient Image Transformers, the distillation token (Touvron et al., 2021)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses.deit_hard import deit_hard_loss
from kd.losses.kd import kd_loss


def deit_token_loss(
    logits_class: Tensor,
    logits_token: Tensor,
    logits_t: Tensor,
    target: Tensor,
    form: Literal["hard", "soft"] = "hard",
    share: float = 0.5,
    temperature: float = 3.0,
) -> Tensor:
    """(1 - share) * CE of the class token + share * distillation of the other token, in nats.

    Touvron et al. 2021 (arXiv 2012.12877), section 4. Each token has a head of its own. The class
    token's learns from the labels, the other's from the teacher. All parts are means over the
    batch. The authors' code divides the KL of the soft form by the number of classes as well; the
    paper does not, and this follows the paper.

    Args:
        logits_class, logits_token: of the student's two heads, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        target: class labels, int64 [B], or soft labels [B, C].
        form: `hard` learns the teacher's choice of class (eq. 3), `soft` by T^2 * KL (eq. 2).
        share: weight of the distillation, in [0, 1].
        temperature: T > 0 of the soft form.

    Returns:
        scalar >= 0. Its minimum is not 0.
    """
    if form == "hard":
        distilled = deit_hard_loss(logits_token, logits_t)
    else:
        distilled = kd_loss(logits_token, logits_t, temperature)
    return (1 - share) * F.cross_entropy(logits_class, target) + share * distilled


class DeiTToken(nn.Module):
    """The loss for a student whose hooked layers are its two heads, the class token's first.

    The student answers with the mean of both heads, as timm's nets do. It learns nothing itself.

    Raises:
        ValueError: the hooked layers are not two heads.
    """

    def __init__(self, shapes_s: tuple[tuple[int, ...], ...], num_classes: int) -> None:
        super().__init__()
        if shapes_s != ((num_classes,), (num_classes,)):
            raise ValueError(
                f"student.taps: found layers of the shapes {list(shapes_s)}; accepted are the two "
                f"heads of a distilled transformer, {num_classes} logits each, as [head, "
                "head_dist] of student=timm student.net.name=deit_tiny_distilled_patch16_224"
            )

    def forward(
        self,
        feats_s: list[Tensor],
        logits_t: Tensor,
        target: Tensor,
        form: Literal["hard", "soft"] = "hard",
        share: float = 0.5,
        temperature: float = 3.0,
    ) -> Tensor:
        """Compute `deit_token_loss` of the logits [B, C] of both heads; a scalar."""
        logits_class, logits_token = feats_s
        return deit_token_loss(
            logits_class, logits_token, logits_t, target, form, share, temperature
        )
