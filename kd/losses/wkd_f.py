"""Wasserstein Distance Rivals Kullback-Leibler Divergence: features (Lv, Yang & Li, 2024)."""

import torch
from torch import Tensor, nn

from kd.losses._maps import as_map, channels, connector


def wkd_f_loss(
    maps_s: Tensor, maps_t: Tensor, mean_weight: float = 4.0, grid: int = 1, epsilon: float = 1e-5
) -> Tensor:
    """mean_weight * |m_s - m_t|^2 + |d_s - d_t|^2, mean over the images and their cells.

    Lv et al. 2024 (arXiv 2412.08139), section 3.2: the squared 2-Wasserstein distance of two
    Gaussians with diagonal covariance. m and d are the means and standard deviations of the
    channels over the pixels of a cell. The norm sums over channels. As in the authors' code the
    variance is over n - 1 and `epsilon` is added to it; a cell of one pixel has the variance 0.

    Args:
        maps_s: student maps, [B, C, H, W].
        maps_t: teacher maps, [B, C, h, w], of any height and width; detached.
        grid: cells per side; at most the side of the smaller maps.

    Returns:
        scalar >= 0; at equal maps 0.
    """
    maps_t = maps_t.detach()
    cells: int = min(grid, *maps_s.shape[2:], *maps_t.shape[2:])
    total = maps_s.new_zeros(())
    for row in range(cells):
        for column in range(cells):
            m_s, d_s = _gaussian(_cell(maps_s, cells, row, column), epsilon)
            m_t, d_t = _gaussian(_cell(maps_t, cells, row, column), epsilon)
            total = total + mean_weight * (m_s - m_t).pow(2).sum(1).mean()
            total = total + (d_s - d_t).pow(2).sum(1).mean()
    return total / cells**2


def _cell(maps: Tensor, cells: int, row: int, column: int) -> Tensor:
    """Return a cell's pixels, [B, C, n], with the borders of adaptive pooling."""
    height, width = maps.shape[2:]
    rows = slice(row * height // cells, -(-(row + 1) * height // cells))
    columns = slice(column * width // cells, -(-(column + 1) * width // cells))
    return maps[:, :, rows, columns].flatten(2)


def _gaussian(pixels: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    mean = pixels.mean(2)
    variance = (pixels - mean[..., None]).pow(2).sum(2) / max(pixels.shape[2] - 1, 1)
    return mean, torch.sqrt(variance + epsilon)


class WKDF(nn.Module):
    """The loss on the last pair of maps, with its projector of the student's: 1x1 convolution,
    batch norm, ReLU.

    Args:
        mean_weight, grid, epsilon: as in `wkd_f_loss`.
    """

    def __init__(
        self,
        shapes_s: tuple[tuple[int, ...], ...],
        shapes_t: tuple[tuple[int, ...], ...],
        mean_weight: float = 4.0,
        grid: int = 1,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        if grid < 1 or epsilon <= 0:
            raise ValueError(f"found grid {grid}, epsilon {epsilon}; accepted are numbers above 0")
        self.mean_weight = mean_weight
        self.grid = grid
        self.epsilon = epsilon
        self.projector = connector(channels(shapes_s[-1]), channels(shapes_t[-1])).append(nn.ReLU())

    def forward(self, feats_s: list[Tensor], feats_t: list[Tensor]) -> Tensor:
        """Compute `wkd_f_loss` of the last maps [B, C, H, W]; a scalar."""
        projected = self.projector(as_map(feats_s[-1]))
        return wkd_f_loss(projected, as_map(feats_t[-1]), self.mean_weight, self.grid, self.epsilon)
