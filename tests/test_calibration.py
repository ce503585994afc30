"""Temperature scaling, against a search over a fine grid."""

import numpy as np
import pytest
import torch

from kd.measure.calibration import fit_temperature


def nll(z: np.ndarray, y: np.ndarray, temperature: float) -> float:
    z = z / temperature
    z = z - z.max(1, keepdims=True)
    return float(-(z[np.arange(len(y)), y] - np.log(np.exp(z).sum(1))).mean())


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_the_temperature_has_the_lowest_loss(scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(2000, 5, generator=generator) * 2
    labels = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    found = fit_temperature(true * scale, labels)
    z, y = (true * scale).double().numpy(), labels.numpy()
    grid = scale * np.linspace(0.8, 1.25, 901)
    best = grid[np.argmin([nll(z, y, t) for t in grid])]
    assert found == pytest.approx(best, rel=1e-3)
    assert found == pytest.approx(scale, rel=0.1)  # the labels were drawn from softmax(true)


def test_no_temperature_where_none_is_best() -> None:
    labels = torch.arange(4).repeat(5)
    right = torch.nn.functional.one_hot(labels, 4).float()
    assert fit_temperature(right, labels) is None  # the smaller, the better
    assert fit_temperature(40 * right, labels) is None
    assert fit_temperature(-right, labels) is None  # the larger, the better
