"""Training Data-Efficient Image Transformers, hard distillation (Touvron et al., 2021)."""

import torch.nn.functional as F
from torch import Tensor


def deit_hard_loss(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher chooses, mean over the batch, in nats.

    Touvron et al. 2021 (arXiv 2012.12877), eq. 3: the teacher's choice counts like a second label.
    There is no temperature. In the paper a distillation token with a head of its own learns it;
    here the student's one head does, as the nets of this project give one set of logits.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.

    Returns:
        scalar >= 0. Equal logits are not its minimum: it is 0 where the student is sure of the
        teacher's class.
    """
    return F.cross_entropy(logits_s, logits_t.detach().argmax(dim=1))
