"""Training on two processes of one machine, next to one with all its cores."""

import json
from collections.abc import Callable
from pathlib import Path

from conftest import ROUNDS
from in_turn import Row, compared, in_turn, seconds_of

EPOCHS = 4


def test_two_processes(
    train: Callable[..., tuple[str, ...]], tell: Callable[[Row], None], tmp_path: Path
) -> None:
    """Time a step on 100 images, validation included: one process, or two with 50 each."""

    def step(name: str, *overrides: str) -> Callable[[], float]:
        rounds = iter(range(ROUNDS))

        def measured() -> float:
            out = tmp_path / f"{name}-{next(rounds)}"
            seconds_of(
                *train(out, "stages=[baseline]", f"epochs={EPOCHS}", *overrides), threads=None
            )
            (report,) = out.glob("runs/*/report.json")
            milliseconds: float = json.loads(report.read_text())["models"][0]["step_ms"]
            return milliseconds / 1000

        return measured

    two = step("two", "trainer=ddp", "trainer.devices=2")
    found = in_turn({"two": two, "one": step("one")}, ROUNDS, warm=False)
    tell(
        compared("a step on 2 processes / on 1", found["two"], found["one"], unit="ms", scale=1000)
    )
