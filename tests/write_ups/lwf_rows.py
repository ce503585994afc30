"""Learning without Forgetting whose slice selects images instead of classes."""

import torch.nn.functional as F
from torch import Tensor


def lwf_rows_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 2.0) -> Tensor:
    """The binary cross-entropy of `kd.losses.lwf_bce`, over `outputs[:old]` where `outputs[:, :old]` was meant.

    So the first C_old images of the batch are held to the old net's outputs, the others are not. The write-up's nets
    have all outputs from the start; here the old net has C_old, and of the new one's as many are compared.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C_old] with C_old <= C; no gradient flows to it.
        temperature: T > 0.

    Returns:
        scalar >= 0.
    """
    old = logits_t.shape[1]
    p_s = F.softmax(logits_s[:old, :old] / temperature, dim=1)
    p_t = F.softmax(logits_t[:old].detach() / temperature, dim=1)
    return F.binary_cross_entropy(p_s, p_t)
