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
