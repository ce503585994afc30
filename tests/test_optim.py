import numpy as np
import pytest
from torch import nn

from kd.training.optim import make_optimizer


@pytest.mark.parametrize(
    ("schedule", "falls"), [("step", [120, 180]), ("step_late", [150, 180, 210]), ("constant", [])]
)
def test_when_the_rate_falls_to_a_tenth(schedule: str, falls: list[int]) -> None:
    optimizer, rates = make_optimizer(
        nn.Linear(1, 1).parameters(),
        240,
        optim={"_target_": "torch.optim.SGD", "lr": 0.05},
        schedule=schedule,
    )
    seen = []
    for _ in range(240):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rates.step()
    assert [n for n in range(1, 240) if seen[n] != seen[n - 1]] == falls
    assert seen[-1] == pytest.approx(0.05 * 0.1 ** len(falls))


def test_the_triangular_rate_rises_and_falls_in_lines() -> None:
    optimizer, rates = make_optimizer(
        nn.Linear(1, 1).parameters(),
        1000,
        optim={"_target_": "torch.optim.SGD", "lr": 2.0, "momentum": 0.85},
        schedule="triangular",
    )
    seen = []
    for _ in range(1000):
        seen.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[0]["momentum"] == 0.85
        optimizer.step()
        rates.step()
    points = np.interp(range(1000), [0, 229, 999], [0.4, 2.0, 0.14])
    np.testing.assert_allclose(seen, points, atol=1e-9)
