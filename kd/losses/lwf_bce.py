"""Learning without Forgetting with a binary cross-entropy between probabilities, a form often met in practice."""

import torch
import torch.nn.functional as F
from torch import Tensor


def lwf_bce_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 2.0) -> Tensor:
    """BCE(softmax(s_old / T), softmax(t / T)), mean over images and old classes, in nats.

    Li & Hoiem 2016, "Learning without Forgetting", section 3, with the cross-entropy of eq. 2 to 4 replaced by a binary
    one on each old class's probability; usually with a weight of 10. It is no formula of the paper's. Where it is met,
    two slips are common: slices that select images instead of classes, and a temperature on one side only. Here
    the slices select classes and both sides are softened.

    log(1 - p) is computed from the logits, so that it keeps its value where p rounds to 1.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C_old] with C_old <= C; no gradient flows to it.
        temperature: T > 0.

    Returns:
        scalar >= 0. Its minimum is the binary entropy of the teacher's probabilities, not 0. Of a single old class
        the probability is always 1, so nothing is to be learned: 0.
    """
    old = logits_t.shape[1]
    z = logits_s[:, :old] / temperature
    if old == 1:
        return 0.0 * z.sum()
    p_t = F.softmax(logits_t.detach() / temperature, dim=1)
    log_p = F.log_softmax(z, dim=1)
    return -(p_t * log_p + (1 - p_t) * _log_of_rest(z, log_p)).mean()


def _log_of_rest(z: Tensor, log_p: Tensor) -> Tensor:
    """log(1 - softmax(z)), [B, C]: of the largest the sum of the others, of the others, at most 1/2, as it stands."""
    largest = F.one_hot(z.argmax(1), z.shape[1]).bool()
    of_largest = z.masked_fill(largest, -torch.inf).logsumexp(1) - z.logsumexp(1)
    p = log_p.exp().masked_fill(largest, 0.0)
    return torch.where(largest, of_largest[:, None], torch.log1p(-p))
