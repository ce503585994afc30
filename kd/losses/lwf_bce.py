"""Learning without Forgetting with binary cross-entropy between probabilities, a common variant."""

import torch
import torch.nn.functional as F
from torch import Tensor

COMMAND = "kd.incremental"  # only this command has classes that the teacher does not know


def lwf_bce_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 2.0) -> Tensor:
    """BCE(softmax(s_old / T), softmax(t / T)), mean over images and old classes, in nats.

    Li & Hoiem 2016, "Learning without Forgetting", section 3, with a binary cross-entropy on each
    old class's probability instead of eq. 2 to 4; usually at weight 10. The paper has no such
    formula. Common versions have two errors: slices that select images instead of classes, and a
    temperature on one side only. Here slices select classes and both sides are softened.

    log(1 - p) is computed from the logits, so it stays exact where p rounds to 1.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C_old] with C_old <= C; detached.
        temperature: T > 0.

    Returns:
        scalar >= 0. Its minimum is the binary entropy of the teacher's probabilities, not 0. With a
        single old class the probability is always 1 and the loss 0.
    """
    old = logits_t.shape[1]
    z = logits_s[:, :old] / temperature
    if old == 1:
        return 0.0 * z.sum()
    p_t = F.softmax(logits_t.detach() / temperature, dim=1)
    log_p = F.log_softmax(z, dim=1)
    return -(p_t * log_p + (1 - p_t) * _log_of_rest(z, log_p)).mean()


def _log_of_rest(z: Tensor, log_p: Tensor) -> Tensor:
    """Return log(1 - softmax(z)), [B, C], without cancellation.

    For the largest probability it is the log of the sum of the others. The others are at most 1/2,
    where log(1 - p) is exact enough.
    """
    largest = F.one_hot(z.argmax(1), z.shape[1]).bool()
    of_largest = z.masked_fill(largest, -torch.inf).logsumexp(1) - z.logsumexp(1)
    p = log_p.exp().masked_fill(largest, 0.0)
    return torch.where(largest, of_largest[:, None], torch.log1p(-p))
