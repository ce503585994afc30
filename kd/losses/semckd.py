"""Cross-Layer Distillation with Semantic Calibration, SemCKD (Chen et al., 2021)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._maps import Norm, as_map, channels, same_size, unit


def semckd_loss(
    projected: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]], scores: Tensor
) -> Tensor:
    """Squared difference of each student layer and each teacher layer, weighted by attention.

    Chen et al. 2021 (arXiv 2012.03236), eq. 4 to 7: for each image and student layer the attention
    over the teacher's layers is a softmax of the scores. The difference is a mean over an image's
    numbers. The sum over all pairs is divided by the number of student layers, as in the authors'
    code, and is a mean over the batch.

    Args:
        projected: by student layer and teacher layer, the student's map at the teacher's width,
            [B, C, H, W].
        wanted: the teacher's maps of the same shapes; detached.
        scores: product of query and key, [B, student layers, teacher layers].

    Returns:
        scalar >= 0; 0 where each pair agrees.
    """
    apart = [
        torch.stack(
            [(s - t.detach()).square().flatten(1).mean(1) for s, t in zip(*row, strict=True)], dim=1
        )
        for row in zip(projected, wanted, strict=True)
    ]
    weighted = scores.softmax(2) * torch.stack(apart, dim=1)
    return weighted.sum((1, 2)).mean() / scores.shape[1]


class Similarities(nn.Module):
    """Perceptron of an image's similarities to all images of its batch, scaled to length 1.

    Args:
        batch: number of images that a row has room for; a smaller batch leaves zeros at its end.
        width: of the output.
    """

    def __init__(self, batch: int, width: int) -> None:
        super().__init__()
        self.batch = batch
        self.layers = nn.Sequential(
            nn.Linear(batch, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return [B, width] for maps [B, C, H, W]."""
        flat = maps.flatten(1)
        rows = F.pad(flat @ flat.T, (0, self.batch - len(flat)))
        return unit(self.layers(rows))


def _regressor(inputs: int, outputs: int) -> nn.Sequential:
    """Build the layers that map a student's channels to a teacher's."""
    inner = 2 * outputs
    return nn.Sequential(
        *(nn.Conv2d(inputs, inner, 1, bias=False), Norm(inner), nn.ReLU()),
        *(nn.Conv2d(inner, inner, 3, padding=1, bias=False), Norm(inner), nn.ReLU()),
        nn.Conv2d(inner, outputs, 1, bias=False),
    )


class SemCKD(nn.Module):
    """The loss with its attention and its projections, for all hooked layers of both nets.

    An image's row of similarities has the order of the images in the batch, which the attention's
    perceptrons see, as in the authors' code. Theirs leaves out a batch that is not full; here its
    missing similarities are 0.

    Args:
        batch_size: images that a device sees at once, at most.
        factor: of the perceptrons' output, 1 / factor of the batch.
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        batch_size: int,
        factor: int = 4,
    ) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor: found {factor}, accepted is a number from 1")
        width = max(1, batch_size // factor)
        self.queries = nn.ModuleList(Similarities(batch_size, width) for _ in shapes_s)
        self.keys = nn.ModuleList(Similarities(batch_size, width) for _ in shapes_t)
        self.projections = nn.ModuleList(
            nn.ModuleList(_regressor(channels(s), channels(t)) for t in shapes_t) for s in shapes_s
        )

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """Compute `semckd_loss` of all layers [B, ...]; a scalar."""
        own = [as_map(each) for each in feats_s]
        theirs = [as_map(each.detach()) for each in feats_t]
        query = torch.stack([look(s) for look, s in zip(self.queries, own, strict=True)], dim=1)
        key = torch.stack([look(t) for look, t in zip(self.keys, theirs, strict=True)], dim=2)
        projected: list[list[Tensor]] = []
        wanted: list[list[Tensor]] = []
        for s, row in zip(own, self.projections, strict=True):
            assert isinstance(row, nn.ModuleList)
            pairs = [same_size(s, t) for t in theirs]
            projected.append([to(pair[0]) for to, pair in zip(row, pairs, strict=True)])
            wanted.append([pair[1] for pair in pairs])
        return semckd_loss(projected, wanted, query @ key)
