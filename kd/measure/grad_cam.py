"""Grad-CAM: the image regions that a net's decision rests on (Selvaraju et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.nets.layer_paths import dry_pass
from kd.nets.pairing import default_taps
from kd.shape import Shape


def last_maps(net: nn.Module, shape: Shape) -> str | None:
    """Return the path of the last hooked module that gives maps; None if there is none."""
    outputs = dry_pass(net, shape, training=False).outputs
    maps = [path for path in default_taps(net, shape) if _is_maps(outputs.get(path))]
    return maps[-1] if maps else None


def _is_maps(output: object) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1


def grad_cam(net: nn.Module, x: Tensor, labels: Tensor, path: str) -> Tensor:
    """Compute Grad-CAM, relu(sum over k of w_k A_k), from the last maps A_k (eq. 1 and 2).

    w_k is the mean over positions of the logit's gradient by A_k.

    Args:
        net: is left in evaluation mode.
        x: normalised images [B, C, H, W].
        labels: the class to explain, int64 [B].
        path: path of the module whose output are the maps [B, K, h, w].

    Returns:
        float32 [B, H, W] in [0, 1], at image size; all 0 where no position supports the class.
    """
    seen: list[Tensor] = []
    hook = net.get_submodule(path).register_forward_hook(lambda _m, _i, out: seen.append(out))
    try:
        with torch.enable_grad():
            logits = net.eval()(x.detach().requires_grad_())
            own = logits.gather(1, labels[:, None]).sum()
            (gradient,) = torch.autograd.grad(own, seen[0])
    finally:
        hook.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    spoken = F.relu((weights * seen[0].detach()).sum(1, keepdim=True)).float()
    large = F.interpolate(spoken, x.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return large / large.amax((1, 2), keepdim=True).clamp(min=1e-12)
