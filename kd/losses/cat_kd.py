"""Class Attention Transfer Based Knowledge Distillation (Guo et al., 2023)."""

import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import answers, unit


def cat_kd_loss(
    maps_s: Tensor,
    maps_t: Tensor,
    head_s: nn.Module,
    head_t: nn.Module,
    side: int = 2,
    normalize: bool = False,
) -> Tensor:
    """Mean squared difference of the two nets' class activation maps, pooled to `side` x `side`.

    Guo et al. 2023 (arXiv 2304.12777), section 3.2. The map of a class is what the last layer says
    of it at each pixel of the last maps; its mean over the pixels is the class's logit. The authors
    replace the last layer by a convolution of size 1 before the pooling, without a bias; here the
    bias is left out of the maps, so the nets stay as they are.

    Args:
        maps_s: last maps of the student before global average pooling, [B, D, H, W].
        maps_t: those of the teacher, [B, E, h, w]; detached.
        head_s: last layer of the student; the loss trains it too.
        head_t: last layer of the teacher.
        side: height and width that the maps are average-pooled to, > 0.
        normalize: scale each class's map to length 1.

    Returns:
        scalar >= 0; 0 where the two agree.
    """
    s = _activations(maps_s, head_s, side)
    t = _activations(maps_t.detach(), head_t, side)
    if normalize:
        s, t = unit(s), unit(t)
    return (s - t).pow(2).mean()


def _activations(maps: Tensor, head: nn.Module, side: int) -> Tensor:
    """Return the class activation maps, [B, side^2, classes]."""
    return answers(F.adaptive_avg_pool2d(maps, side), head, bias=False)
