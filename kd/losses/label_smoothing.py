"""Label smoothing: Rethinking the Inception Architecture for Computer Vision (Szegedy et al.,
2016).
"""

import torch.nn.functional as F
from torch import Tensor


def label_smoothing_loss(logits_s: Tensor) -> Tensor:
    """Cross-entropy with the uniform distribution, mean over the batch, in nats.

    Szegedy et al. 2016, section 7: the whole loss is (1 - e) * H(label, p) + e * H(uniform, p).
    Here e is `alpha`, because the uniform distribution takes the teacher's place. No teacher is
    used. It is a control: it shows how much of a distillation's gain any softening of labels would
    bring.

    Args:
        logits_s: student logits, [B, C].

    Returns:
        scalar >= log(C), with equality where all logits of an image are equal.
    """
    return -F.log_softmax(logits_s, dim=1).mean()
