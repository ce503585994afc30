"""Knowledge Diffusion for Distillation, DiffKD (Huang et al., 2023)."""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import Norm, as_map, channels, same_size

TIMES = 1000  # of the diffusion
FIRST, LAST = 1e-4, 0.02  # variance of the noise added at the first and the last time


def diffkd_loss(
    refined: Tensor,
    latent: Tensor,
    predicted: Tensor,
    noise: Tensor,
    restored: Tensor,
    feats_t: Tensor,
) -> Tensor:
    """Mean squared error of the denoised student map, of the predicted noise, and of the
    autoencoder.

    Huang et al. 2023, equations 6, 8 and 9, with the paper's weights of 1. The target of the first
    is the teacher's latent map, detached. The minimum is 0.

    Args:
        refined, latent: denoised student map, and teacher map in the autoencoder's latent space,
            [B, L, H, W].
        predicted, noise: what the denoiser says was added to the latent map, and what was.
        restored, feats_t: decoded latent map, and the teacher's map, [B, C, H, W].
    """
    kept = F.mse_loss(refined, latent.detach())
    return kept + F.mse_loss(predicted, noise) + F.mse_loss(restored, feats_t.detach())


def signal_shares(times: int = TIMES) -> Tensor:
    """Share of the signal's variance left at each time, float64 [times]: a product of 1 - beta.

    Beta grows linearly (Ho et al. 2020).
    """
    return (1 - torch.linspace(FIRST, LAST, times, dtype=torch.float64)).cumprod(0)


def add_noise(x: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """Mix maps [B, C, H, W] with noise so that `share` [B] of the variance is the map's."""
    left = share.to(x)[:, None, None, None]
    return left.sqrt() * x + (1 - left).sqrt() * noise


def denoise_step(x: Tensor, predicted: Tensor, share: float, next_share: float) -> Tensor:
    """Take a deterministic step of DDIM (Song et al. 2021, equation 12 with sigma 0).

    Args:
        x, predicted: noisy map, and the noise predicted in it, [B, C, H, W].
        share, next_share: variance of the signal now and afterwards, in (0, 1].
    """
    clean = (x - sqrt(1 - share) * predicted) / sqrt(share)
    return sqrt(next_share) * clean + sqrt(1 - next_share) * predicted


class Residual(nn.Module):
    """Bottleneck block with a skip connection; shapes stay [B, C, H, W]."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        inner = max(1, width // reduction)
        self.block = nn.Sequential(
            *(nn.Conv2d(width, inner, 1), Norm(inner), nn.ReLU()),
            *(nn.Conv2d(inner, inner, 3, padding=1), Norm(inner), nn.ReLU()),
            *(nn.Conv2d(inner, width, 1), Norm(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input."""
        out: Tensor = x + self.block(x)
        return out


class DiffKD(nn.Module):
    """The loss with its denoiser, on the last maps, as the authors do for classifiers.

    A denoiser learns to take noise off the teacher's maps in the latent space of a small
    autoencoder. It then cleans the student's map, which counts as a noisy one, in a few steps from
    the middle of the diffusion. An adapter first mixes the student's map with as much noise as
    brings it there (section 3.3).

    Args:
        latent: channels of the latent space; None for half of the teacher's.
        steps: of the denoising.
    """

    shares: Tensor

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        latent: int | None = None,
        steps: int = 5,
    ) -> None:
        super().__init__()
        if not 1 <= steps <= TIMES // 2:
            raise ValueError(f"steps: found {steps}, accepted is a number from 1 to {TIMES // 2}")
        if latent is not None and latent < 1:
            raise ValueError(f"latent: found {latent}, accepted is null or a number from 1")
        self.steps = steps
        wide = channels(shapes_t[-1])
        width = latent or max(1, wide // 2)
        self.align = nn.Conv2d(channels(shapes_s[-1]), width, 1)
        self.encode = nn.Sequential(nn.Conv2d(wide, width, 1), Norm(width))
        self.decode = nn.Conv2d(width, wide, 1)
        self.times = nn.Embedding(TIMES, width)
        self.predict = nn.Sequential(
            *(Residual(width, 4), Residual(width, 4), nn.Conv2d(width, width, 1), Norm(width))
        )
        self.adapter = nn.Sequential(
            *(Residual(width, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))
        )
        self.project = nn.Conv2d(width, width, 1)
        self.register_buffer("shares", signal_shares(), persistent=False)

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor], index: Tensor) -> Tensor:
        """Compute `diffkd_loss` of maps [B, C, H, W]; each image's draws follow the rank of
        `index` [B], wherever it is in the batch.
        """
        s, t = same_size(as_map(feats_s[-1]), as_map(feats_t[-1].detach()))
        turn = index.argsort().argsort()
        s = self.align(s)
        hidden = self.encode(t)
        latent = hidden.detach()
        first, noise = (torch.randn(s.shape, device=s.device)[turn].to(s) for _ in range(2))
        times = torch.randint(0, TIMES, (len(s),), device=s.device)[turn]
        predicted = self._noise_in(add_noise(latent, noise, self.shares[times]), times)
        refined = self.project(self.denoise(s, first))
        return diffkd_loss(refined, latent, predicted, noise, self.decode(hidden), t)

    def denoise(self, x: Tensor, noise: Tensor) -> Tensor:
        """Mix the student's map with noise and clean it; [B, L, H, W]."""
        own = self.adapter(x).softmax(1)[:, :1, None, None]
        x = own * x + (1 - own) * noise
        stride = TIMES // (2 * self.steps)
        for time in range(stride * (self.steps - 1), -1, -stride):
            now, later = (float(self.shares[i]) if i >= 0 else 1.0 for i in (time, time - stride))
            times = torch.full((len(x),), time, device=x.device)
            x = denoise_step(x, self._noise_in(x, times), now, later)
        return x

    def _noise_in(self, x: Tensor, times: Tensor) -> Tensor:
        found: Tensor = self.predict(x + self.times(times)[:, :, None, None].to(x))
        return found
