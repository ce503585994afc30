"""Learning without Forgetting with a slice that selects images instead of classes."""

import torch.nn.functional as F
from torch import Tensor


def lwf_rows_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 2.0) -> Tensor:
    """Binary cross-entropy of `kd.losses.lwf_bce` over `outputs[:old]`, where `outputs[:, :old]`
    was meant.

    So the first C_old images of the batch are held to the old net's outputs, and the others are
    not. The write-up's nets have all outputs from the start. Here the old net has C_old, and as
    many of the new net's are compared.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C_old] with C_old <= C; detached.
        temperature: T > 0.

    Returns:
        scalar >= 0.
    """
    old = logits_t.shape[1]
    p_s = F.softmax(logits_s[:old, :old] / temperature, dim=1)
    p_t = F.softmax(logits_t[:old].detach() / temperature, dim=1)
    return F.binary_cross_entropy(p_s, p_t)
