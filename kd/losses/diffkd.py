"""Knowledge Diffusion for Distillation, DiffKD (Huang et al., 2023)."""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import Norm, as_map, channels, same_size
from kd.losses.kd import kd_loss

TIMES = 1000  # of the diffusion
FIRST, LAST = 1e-4, 0.02  # variance of the noise added at the first and the last time


def diffkd_loss(
    refined: Tensor,
    wanted: Tensor,
    predicted: Tensor,
    noise: Tensor,
    restored: Tensor | None = None,
    feats_t: Tensor | None = None,
) -> Tensor:
    """Error of the denoised student, of the predicted noise, and of the autoencoder.

    Huang et al. 2023 (arXiv 2305.15712), section 3. The three parts count equally, as in the
    authors' code. The last two are mean squared errors. So is the first for maps; for logits it is
    the KL from the teacher's softmax, batch mean, in nats.

    Args:
        refined, wanted: the student's denoised map, and the teacher's in the autoencoder's latent
            space, [B, L, H, W]; or logits, [B, C]. The teacher's are detached.
        predicted, noise: what the denoiser says was added to `wanted`, and what was.
        restored, feats_t: decoded latent map, and the teacher's map, [B, C, H, W]; None for logits.

    Returns:
        scalar >= 0; 0 where each pair agrees.
    """
    wanted = wanted.detach()
    if refined.ndim == 2:
        total = kd_loss(refined, wanted, temperature=1.0)
    else:
        total = F.mse_loss(refined, wanted)
    total = total + F.mse_loss(predicted, noise)
    if restored is None or feats_t is None:
        return total
    return total + F.mse_loss(restored, feats_t.detach())


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


def _perceptron(width: int, inner: int) -> tuple[nn.Module, ...]:
    """Return the layers of a perceptron for each pixel, without a norm after the last."""
    hidden = (nn.Conv2d(width, inner, 1), Norm(inner), nn.ReLU())
    return (*hidden, nn.Conv2d(inner, width, 1))


class Denoiser(nn.Module):
    """Network that takes noise off the teacher's maps, and cleans the student's with it.

    Args:
        width_s, width: channels of the student and of the teacher.
        steps: of the denoising.
        spatial: whether it looks at neighbouring pixels; logits are maps of one pixel.
    """

    shares: Tensor

    def __init__(self, width_s: int, width: int, steps: int, spatial: bool) -> None:
        super().__init__()
        self.steps = steps
        self.align = nn.Conv2d(width_s, width, 1)
        self.times = nn.Embedding(TIMES, width)
        if spatial:
            blocks = (Residual(width, 4), Residual(width, 4))
            self.predict = nn.Sequential(*blocks, nn.Conv2d(width, width, 1), Norm(width))
            seen: tuple[nn.Module, ...] = (Residual(width, 8), nn.AdaptiveAvgPool2d(1))
        else:
            wide = 4 * width
            self.predict = nn.Sequential(
                *_perceptron(width, wide), Norm(width), *_perceptron(width, wide)
            )
            seen = (*_perceptron(width, 2 * width), Norm(width))
        self.adapter = nn.Sequential(*seen, nn.Flatten(), nn.Linear(width, 2))
        self.project = nn.Sequential(nn.Conv2d(width, width, 1), Norm(width))
        self.register_buffer("shares", signal_shares(), persistent=False)

    def forward(self, s: Tensor, t: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the student's denoised map, the noise predicted in the teacher's, and that noise.

        Args:
            s, t: maps of student and teacher, [B, C, H, W].
            turn: order of the draws of the images, int64 [B].
        """
        s = self.align(s)
        first, noise = (torch.randn(s.shape, device=s.device)[turn].to(s) for _ in range(2))
        times = torch.randint(0, TIMES, (len(s),), device=s.device)[turn]
        refined = self.project(self.denoise(s, first))
        return refined, self._noise_in(add_noise(t, noise, self.shares[times]), times), noise

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


class DiffKD(nn.Module):
    """The loss with its denoisers, on the last maps and on the logits, as in the authors' code.

    A denoiser learns to take noise off the teacher's maps, in the latent space of a small
    autoencoder. It then cleans the student's map, which counts as a noisy one, in a few steps from
    the middle of the diffusion. An adapter first mixes the student's map with as much noise as
    brings it there. Logits have a denoiser of their own, without an autoencoder.

    Args:
        latent: channels of the latent space; None for half of the teacher's.
        steps: of the denoising.
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        num_classes: int,
        latent: int | None = None,
        steps: int = 5,
    ) -> None:
        super().__init__()
        if not 1 <= steps <= TIMES // 2:
            raise ValueError(f"steps: found {steps}, accepted is a number from 1 to {TIMES // 2}")
        if latent is not None and latent < 1:
            raise ValueError(f"latent: found {latent}, accepted is null or a number from 1")
        wide = channels(shapes_t[-1])
        width = latent or max(1, wide // 2)
        self.encode = nn.Sequential(nn.Conv2d(wide, width, 1), Norm(width))
        self.decode = nn.Conv2d(width, wide, 1)
        self.maps = Denoiser(channels(shapes_s[-1]), width, steps, spatial=True)
        self.logits = Denoiser(num_classes, num_classes, steps, spatial=False)

    def forward(
        self,
        feats_s: list[Tensor],
        feats_t: list[Tensor],
        logits_s: Tensor,
        logits_t: Tensor,
        index: Tensor,
    ) -> Tensor:
        """Compute `diffkd_loss` of maps [B, C, H, W] plus that of logits [B, C].

        Each image's draws follow the rank of `index` [B], wherever it is in the batch.
        """
        s, t = same_size(as_map(feats_s[-1]), as_map(feats_t[-1].detach()))
        turn = index.argsort().argsort()
        hidden = self.encode(t)
        latent = hidden.detach()
        of_maps = self.maps(s, latent, turn)
        refined, *of_noise = (
            each.flatten(1)
            for each in self.logits(as_map(logits_s), as_map(logits_t.detach()), turn)
        )
        refined_map, predicted, noise = of_maps
        total = diffkd_loss(refined_map, latent, predicted, noise, self.decode(hidden), t)
        return total + diffkd_loss(refined, logits_t, *of_noise)
