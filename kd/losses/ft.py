"""Paraphrasing Complex Network: Network Compression via Factor Transfer (Kim, Park & Kwak,
2018).
"""

from itertools import pairwise

from torch import Tensor, nn

from kd.losses._maps import Norm, as_map, channels, same_size, unit


def ft_loss(factor_s: Tensor, factor_t: Tensor) -> Tensor:
    """Mean absolute difference of the two nets' factors, each scaled to length 1 per image.

    Kim, Park & Kwak 2018, section 3.3 with p = 1, averaged over the values instead of summed. This
    follows the authors' code, which uses the weight 500. Tian et al. 2020 compare another factor,
    the channel mean of squares, at weight 200; that weight does not apply here.

    Args:
        factor_s: student factor from the translator, [B, C, H, W].
        factor_t: teacher factor from the paraphraser, same shape; detached.

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
    """Autoencoder of the teacher's last map; its bottleneck is the factor.

    Args:
        rate: channels of the factor as a share of the teacher's, > 0; k of the paper.
    """

    def __init__(self, shapes_t: tuple[tuple[int, ...], ...], rate: float = 0.5) -> None:
        super().__init__()
        wide = channels(shapes_t[-1])
        narrow = max(1, round(rate * wide))
        self.fold = _stack(wide, wide, narrow, narrow)
        self.unfold = _stack(narrow, narrow, wide, wide)

    def forward(self, feats_t: list[Tensor]) -> Tensor:
        """Return the mean squared reconstruction error of the last map [B, C, H, W]; a scalar."""
        maps = as_map(feats_t[-1].detach())
        restored: Tensor = self.unfold(self.fold(maps))
        return (restored - maps).pow(2).mean()


class Paraphrase(nn.Module):
    """Reconstruction error of the paraphraser, for a stage before the transfer; see
    `experiment=ft`.

    Args:
        rate: as in `FT`.
    """

    def __init__(self, shapes_t: tuple[tuple[int, ...], ...], rate: float = 0.5) -> None:
        super().__init__()
        # The name is that in `FT`, which loads its weights
        self.paraphraser = Paraphraser(shapes_t, rate)

    def forward(self, feats_t: list[Tensor]) -> Tensor:
        """Return the reconstruction error for maps [B, C, H, W]; a scalar >= 0."""
        error: Tensor = self.paraphraser(feats_t)
        return error


class FT(nn.Module):
    """The loss with the teacher's paraphraser and the student's translator, on the last maps.

    In the paper a stage of its own trains the paraphraser, which then stays fixed
    (`experiment=ft`). Without such a stage the paraphraser learns alongside.

    Args:
        rate: channels of the factor as a share of the teacher's, > 0.
        reconstruction: weight of the reconstruction error; 0 freezes the paraphraser from the
            earlier stage.
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
        own = channels(shapes_s[-1])
        narrow = max(1, round(rate * channels(shapes_t[-1])))
        self.translator = _stack(own, own, narrow, narrow)

    def train(self, mode: bool = True) -> "FT":
        """Set the mode; a frozen paraphraser stays in evaluation mode."""
        super().train(mode)
        self.paraphraser.train(mode and self.reconstruction > 0)
        return self

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """Compute `ft_loss` of the last maps [B, C, H, W], plus the reconstruction error; a
        scalar.
        """
        factor_s = self.translator(as_map(feats_s[-1]))
        factor_t = self.paraphraser.fold(as_map(feats_t[-1].detach())).detach()
        loss = ft_loss(*same_size(factor_s, factor_t))
        return (
            loss + self.reconstruction * self.paraphraser(feats_t) if self.reconstruction else loss
        )
