"""Logits of multi-label nets: Multi-Label Knowledge Distillation (Yang et al., 2023)."""

import torch.nn.functional as F
from torch import Tensor


def mld_loss(logits_s: Tensor, logits_t: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 * KL(Bernoulli(t / T) || Bernoulli(s / T)), mean over images and classes, in nats.

    Yang et al. 2023, "Multi-Label Knowledge Distillation", section 3.2: each class is a question of
    its own, whose two answers have the probabilities sigmoid(z) and 1 - sigmoid(z). They sum over
    the classes at T = 1. The mean is used here, as in the binary cross-entropy of the labels, so
    that alpha weighs both alike. T is as in `kd`.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        temperature: T > 0.

    Returns:
        scalar >= 0; 0 where the two are equal.
    """
    s = logits_s / temperature
    t = logits_t.detach() / temperature
    p = t.sigmoid()
    yes = p * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (yes + no).mean() * temperature**2


mld_loss.multilabel = True  # type: ignore[attr-defined]
