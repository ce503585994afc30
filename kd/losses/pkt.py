"""Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis & Tefas, 2018)."""

from torch import Tensor

from kd.losses._maps import unit


def pkt_loss(pooled_s: Tensor, pooled_t: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Mean over all B^2 pairs of p_t * log((p_t + eps) / (p_s + eps)), in nats; p an image's neighbours' shares.

    Passalis & Tefas 2018, section 3: p(j | i) is the kernel (cos + 1) / 2 of two embeddings, divided by its sum over
    j. The paper sums over the pairs and leaves an image's likeness to itself out; the authors' code means and keeps it.

    Args:
        pooled_s: the student's embeddings, [B, D].
        pooled_t: the teacher's, of any width; no gradient flows to it.
        epsilon: > 0, keeps the logarithm finite.

    Returns:
        scalar >= 0; 0 where the two agree. It compares the images of a batch with each other, on each device alone:
        ranks do not share their batches.
    """
    p_s, p_t = _neighbours(pooled_s), _neighbours(pooled_t.detach())
    return (p_t * ((p_t + epsilon) / (p_s + epsilon)).log()).mean()


def _neighbours(pooled: Tensor) -> Tensor:
    x = unit(pooled)
    kernel = (x @ x.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)
