"""Similarities to a queue of teacher embeddings, without labels (SEED: Fang et al., 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import unit
from kd.losses._ranks import from_all_ranks


def queue_loss(pooled_s: Tensor, pooled_t: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """KL of the teacher's similarities to a queue and the student's, batch mean, in nats.

    Fang et al. 2021, SEED, section 3.2: the softmax over the queue of the cosines, divided by the
    temperature. The paper's cross-entropy differs by the teacher's entropy, so that the minimum is
    0 here.

    Args:
        pooled_s: student embeddings, projected to the teacher's width, [B, D].
        pooled_t: teacher embeddings, [B, D]; detached.
        queue: teacher embeddings of length 1, [K, D].
        temperature: of both softmaxes, > 0.

    Returns:
        scalar >= 0; 0 at a positive multiple of the teacher's embeddings, once projected.
    """
    keys = queue.detach().T
    log_s = (unit(pooled_s) @ keys / temperature).log_softmax(1)
    log_t = (unit(pooled_t.detach()) @ keys / temperature).log_softmax(1)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


class Queue(nn.Module):
    """The loss with a linear projector, and the teacher's embeddings of the last images.

    A batch's own embeddings enter the queue first, as in the paper. The queue is part of the
    checkpoint; across ranks it is the same. SEED uses 65,536 embeddings and two temperatures. 8,192
    and 0.07 are those of lightly-train's distillation for more than 20,000 images, which also mixes
    the images (data.augment.mixup here).

    Args:
        size: number of embeddings, at most that of the training images.
        temperature: as of `queue_loss`.
    """

    bank: Tensor
    entered: Tensor

    def __init__(
        self,
        width_s: int,
        width_t: int,
        labels: Tensor,
        size: int = 8192,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if size < 2 or temperature <= 0:
            raise ValueError(
                f"found size {size} and temperature {temperature}; accepted are 2 or more and "
                "numbers above 0"
            )
        self.temperature = temperature
        self.project = nn.Linear(width_s, width_t)
        self.register_buffer("bank", torch.zeros(max(2, min(size, len(labels))), width_t))
        self.register_buffer("entered", torch.tensor(0))

    def forward(self, pooled_s: Tensor, pooled_t: Tensor) -> Tensor:
        """Compute `queue_loss` for pooled_s [B, D_s] and pooled_t [B, D_t]; a scalar."""
        if self.training or not int(self.entered):
            self._enter(unit(pooled_t.detach()))
        filled = min(int(self.entered), len(self.bank))
        return queue_loss(
            self.project(pooled_s), pooled_t, self.bank[:filled].clone(), self.temperature
        )

    @torch.no_grad()
    def _enter(self, embeddings: Tensor) -> None:
        """Put embeddings [B, D] in the place of the oldest."""
        new = from_all_ranks(embeddings).to(self.bank)[-len(self.bank) :]
        places = torch.arange(len(new), device=new.device) + self.entered
        self.bank[places % len(self.bank)] = new
        self.entered += len(new)
