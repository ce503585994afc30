"""Curriculum Temperature for Knowledge Distillation (Li et al., 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def ctkd_loss(
    logits_s: Tensor, logits_t: Tensor, temperature: Tensor, reversal: float = 1.0
) -> Tensor:
    """T^2 * KL(softmax(t / T) || softmax(s / T)), mean over the batch, in nats, its gradient to T reversed.

    Li et al. 2023, eq. 4 and 7: the student goes down the loss and the temperature up it, times `reversal` (the
    paper's lambda), so that the task becomes harder as training goes on.

    Args:
        logits_s: the student's, [B, C].
        logits_t: the teacher's, [B, C]; no gradient flows to it.
        temperature: T > 0, a scalar tensor.
        reversal: factor of the reversed gradient, >= 0; 0 leaves the temperature where it is.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant per image.
    """
    still = temperature.detach()
    temperature = still - reversal * (
        temperature - still
    )  # the same value, with -reversal times the slope
    log_p_s = F.log_softmax(logits_s / temperature, dim=1)
    log_p_t = F.log_softmax(logits_t.detach() / temperature, dim=1)
    return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * temperature**2


class CTKD(nn.Module):
    """The loss with its one learned number (the paper's global version): T = low + span * sigmoid(theta).

    The defaults are the authors': T from 1 to 21, theta 1 at the start, so that T starts at 15.6.

    Args:
        low: smallest temperature, > 0.
        span: largest less smallest, > 0.
    """

    def __init__(self, low: float = 1.0, span: float = 20.0) -> None:
        super().__init__()
        if low <= 0 or span <= 0:
            raise ValueError(f"low and span must be above 0; found {low} and {span}")
        self.low, self.span = low, span
        self.theta = nn.Parameter(torch.tensor(1.0))
        self.logged: dict[str, Tensor] = {}

    def forward(self, logits_s: Tensor, logits_t: Tensor, reversal: float = 1.0) -> Tensor:
        """`ctkd_loss` at the temperature of now; logits [B, C] -> scalar."""
        temperature = self.low + self.span * torch.sigmoid(self.theta)
        self.logged = {"temperature": temperature.detach()}
        return ctkd_loss(logits_s, logits_t, temperature, reversal)
