"""Paraphrasing Complex Network: Network Compression via Factor Transfer (Kim, Park & Kwak, 2018)."""

from itertools import pairwise

from torch import Tensor, nn

from kd.losses._maps import Norm, as_map, channels, same_size, unit


def ft_loss(factor_s: Tensor, factor_t: Tensor) -> Tensor:
    """Mean absolute difference of the two nets' factors, each image's of length 1.

    Kim, Park & Kwak 2018, section 3.3 with p = 1, meaned over the factor's values instead of summed. So it is in the
    authors' code, whose weight for it is 500. Tian et al. 2020 compare other factors, the mean over the channels of
    their squares, at the weight 200: another method, for which that weight is no guide here.

    Args:
        factor_s: the student's, through the translator, [B, C, H, W].
        factor_t: the teacher's, through the paraphraser, the same shape; no gradient flows to it.

    Returns:
        scalar >= 0; at equal factors 0.
    """
    return (unit(factor_s.flatten(1)) - unit(factor_t.detach().flatten(1))).abs().mean()


def _stack(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            Norm(outputs),
            nn.LeakyReLU(0.1),
        ]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """Folds the teacher's last maps into fewer channels, the factor, and unfolds them again.

    Args:
        rate: channels of the factor as a share of the teacher's; the paper's k.
    """

    def __init__(self, shapes_t: tuple[tuple[int, ...], ...], rate: float = 0.5) -> None:
        super().__init__()
        wide = channels(shapes_t[-1])
        narrow = max(1, round(rate * wide))
        self.fold = _stack(wide, wide, narrow, narrow)
        self.unfold = _stack(narrow, narrow, wide, wide)

    def forward(self, feats_t: list[Tensor]) -> Tensor:
        """Mean squared error of what comes back; a scalar."""
        maps = as_map(feats_t[-1].detach())
        restored: Tensor = self.unfold(self.fold(maps))
        return (restored - maps).pow(2).mean()


class Paraphrase(nn.Module):
    """The paraphraser's own error alone, for a stage that trains it before the transfer; see `experiment=ft`.

    Args:
        rate: as of `FT`.
    """

    def __init__(self, shapes_t: tuple[tuple[int, ...], ...], rate: float = 0.5) -> None:
        super().__init__()
        self.paraphraser = Paraphraser(shapes_t, rate)  # called as in `FT`, which takes it over

    def forward(self, feats_t: list[Tensor]) -> Tensor:
        """A scalar >= 0."""
        error: Tensor = self.paraphraser(feats_t)
        return error


class FT(nn.Module):
    """The loss with the teacher's paraphraser and the student's translator, on the last pair of taps.

    In the paper the paraphraser is trained first, in a stage of its own, and then stays as it is (`experiment=ft`).
    Without such a stage it has to learn along.

    Args:
        rate: channels of the factor as a share of the teacher's.
        reconstruction: weight of the paraphraser's own error; 0 leaves it as the stage before has made it.
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        rate: float = 0.5,
        reconstruction: float = 0.005,
    ) -> None:
        super().__init__()
        self.paraphraser = Paraphraser(shapes_t, rate)
        self.reconstruction = reconstruction
        if not reconstruction:
            self.paraphraser.requires_grad_(False).eval()
        own, narrow = channels(shapes_s[-1]), max(1, round(rate * channels(shapes_t[-1])))
        self.translator = _stack(own, own, narrow, narrow)

    def train(self, mode: bool = True) -> "FT":
        """A paraphraser that is left as it is stays in evaluation mode."""
        super().train(mode)
        self.paraphraser.train(mode and self.reconstruction > 0)
        return self

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """`ft_loss` of the last pair of taps, and the paraphraser's own error; a scalar."""
        factor_s = self.translator(as_map(feats_s[-1]))
        factor_t = self.paraphraser.fold(as_map(feats_t[-1].detach())).detach()
        loss = ft_loss(*same_size(factor_s, factor_t))
        return (
            loss + self.reconstruction * self.paraphraser(feats_t) if self.reconstruction else loss
        )
