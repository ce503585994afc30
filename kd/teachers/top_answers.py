"""The K largest logits of an answer, and one value for the rest: FKD's marginal smoothing.

Shen & Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition": probabilities of
the K largest classes are kept, and what is left of 1 is spread evenly over the others. Here it is
done to logits, so that a loss may soften them at any temperature.
"""

import math

import torch
from torch import Tensor

from kd.errors import UserError


def spread_rest(logits: Tensor, k: int) -> Tensor:
    """Keep the K largest logits of each row; the others get one value.

    At temperature 1 that value leaves all K probabilities as they are: it is the logarithm of the
    mean of the others' exponentials.

    Args:
        logits: [B, C].
        k: from 1 to C - 1.

    Returns:
        float32 [B, C].
    """
    kept = logits.float().topk(k)
    others = logits.float().scatter(1, kept.indices, -math.inf)
    rest = others.logsumexp(1, keepdim=True) - math.log(logits.shape[1] - k)
    return rest.expand_as(others).scatter(1, kept.indices, kept.values)


def divergence_bound(spread: Tensor, k: int, temperature: float = 1.0) -> Tensor:
    """Bound KL(p || q) by what is stored: p the teacher's probabilities, q those of `spread_rest`.

    Let r be the value of the rest, and S = (C - K) e^r the sum of the others' exponentials at
    temperature 1. Each of the others is at most z, the smaller of the smallest kept logit and
    log S. At temperature T their sum R lies between (C - K) e^(r / T) where all are equal, and
    S e^(z / T - z) where as many as possible are z. So they have at most the share m = R / (A + R)
    for the larger of the two, A the sum of the kept. The divergence is the sum of p_i (z_i - r) / T
    over the others, plus the logarithm of the ratio of the two normalisers:

        KL <= m (z - r) / T + max(0, log((A + (C - K) e^(r / T)) / (A + S e^(z / T - z))))

    At temperature 1 it is m (z - r), which is at most m log(C - K).

    Args:
        spread: result of `spread_rest`, [B, C].

    Returns:
        in nats, float64 [B].
    """
    logits = spread.double()
    kept = logits.topk(k).values
    rest = logits.amin(1)
    count = math.log(logits.shape[1] - k)
    least = torch.minimum(kept[:, -1], rest + count)
    of_kept = (kept / temperature).logsumexp(1)
    equal = count + rest / temperature
    extreme = count + rest + least / temperature - least
    share = torch.sigmoid(torch.maximum(equal, extreme) - of_kept)
    ratio = torch.logaddexp(of_kept, equal) - torch.logaddexp(of_kept, extreme)
    return share * (least - rest) / temperature + ratio.clamp(min=0)


def checked_top_k(top_k: int, classes: int) -> int:
    """Return how many logits of the teacher are kept.

    Raises:
        UserError: there are not more classes than that.
    """
    if top_k >= classes:
        raise UserError(
            f"teacher.top_k: found {top_k}, but the teacher has {classes} classes; accepted are "
            f"1 to {classes - 1}, or null, which keeps all"
        )
    return top_k
