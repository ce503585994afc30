"""Curriculum Temperature for Knowledge Distillation (Li et al., 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def ctkd_loss(
    logits_s: Tensor, logits_t: Tensor, temperature: Tensor, reversal: float = 1.0
) -> Tensor:
    """T^2 * KL(softmax(t / T) || softmax(s / T)), mean over the batch, in nats; the gradient to T
    is reversed.

    Li et al. 2023, eq. 4 and 7: the student descends the loss and the temperature ascends it, times
    `reversal` (lambda in the paper). The task becomes harder as training goes on.

    Args:
        logits_s: student logits, [B, C].
        logits_t: teacher logits, [B, C]; detached.
        temperature: T > 0, a scalar tensor [].
        reversal: factor of the reversed gradient, >= 0; 0 keeps the temperature fixed.

    Returns:
        scalar >= 0; 0 where the two agree up to a constant per image.
    """
    still = temperature.detach()
    # Same value, gradient times -reversal
    temperature = still - reversal * (temperature - still)
    log_p_s = F.log_softmax(logits_s / temperature, dim=1)
    log_p_t = F.log_softmax(logits_t.detach() / temperature, dim=1)
    return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * temperature**2


class CTKD(nn.Module):
    """The loss with one learned number (the global version): T = low + span * sigmoid(theta).

    The defaults are the authors': T ranges from 1 to 21 and theta starts at 1, so T starts at 15.6.

    Args:
        low: smallest temperature, > 0.
        span: largest minus smallest temperature, > 0.
    """

    def __init__(self, low: float = 1.0, span: float = 20.0) -> None:
        super().__init__()
        if low <= 0 or span <= 0:
            raise ValueError(f"low and span must be above 0; found {low} and {span}")
        self.low = low
        self.span = span
        self.theta = nn.Parameter(torch.tensor(1.0))
        self.logged: dict[str, Tensor] = {}

    def forward(self, logits_s: Tensor, logits_t: Tensor, reversal: float = 1.0) -> Tensor:
        """Compute `ctkd_loss` of logits [B, C] at the current temperature; a scalar."""
        temperature = self.low + self.span * torch.sigmoid(self.theta)
        self.logged = {"temperature": temperature.detach()}
        return ctkd_loss(logits_s, logits_t, temperature, reversal)
