"""Multi-Level Logit Distillation with a weak and a strong view (Jin, Wang & Lin, 2023)."""

from collections.abc import Sequence

from torch import Tensor

from kd.losses.mlkd import mlkd_loss


def mlkd_views_loss(
    logits_s: Tensor,
    logits_t: Tensor,
    strong_s: Tensor,
    strong_t: Tensor,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
) -> Tensor:
    """`mlkd_loss` of the weak view plus that of the strong view.

    Jin et al. 2023; the views are those of the authors' code. The code leaves parts of the sum out
    for one of the views, and masks others; here both count alike, as in the paper's equations.

    Args:
        logits_s, logits_t: of the weak view, [B, C]; the teacher's are detached.
        strong_s, strong_t: the same of the strong view, [B, C].
        temperatures: each > 0.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant per image. It depends on the batch size.
    """
    weak = mlkd_loss(logits_s, logits_t, temperatures)
    return weak + mlkd_loss(strong_s, strong_t, temperatures)
