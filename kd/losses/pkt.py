"""Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis & Tefas, 2018)."""

from torch import Tensor

from kd.losses._maps import unit


def pkt_loss(pooled_s: Tensor, pooled_t: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Mean over all B^2 pairs of p_t * log((p_t + eps) / (p_s + eps)), in nats.

    Passalis & Tefas 2018, section 3: p(j | i) is the kernel (cos + 1) / 2 of two embeddings,
    divided by its sum over j. The paper sums over the pairs and leaves out j = i. The authors'
    code, followed here, averages and keeps it.

    Args:
        pooled_s: student embeddings, [B, D].
        pooled_t: teacher embeddings of any width, [B, D_t]; detached.
        epsilon: > 0, keeps the logarithm finite.

    Returns:
        scalar >= 0; 0 where the two agree. The loss compares the images of a batch, on each device
        separately: ranks do not share batches.
    """
    p_s = _neighbours(pooled_s)
    p_t = _neighbours(pooled_t.detach())
    return (p_t * ((p_t + epsilon) / (p_s + epsilon)).log()).mean()


def _neighbours(pooled: Tensor) -> Tensor:
    x = unit(pooled)
    kernel = (x @ x.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)
