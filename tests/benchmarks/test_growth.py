"""Growth of time with images, epochs, sweep jobs and teacher size; fitted and drawn."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import OUT
from in_turn import Row, seconds_of
from matplotlib.figure import Figure

BASE = {"images": 400, "epochs": 2, "jobs": 2, "width": 16}
GRID = {
    "images": (200, 400, 800, 1600),
    "epochs": (1, 2, 4, 8),
    "jobs": (1, 2, 4, 8),
    "width": (8, 16, 32, 64),
}


def seconds(train: Callable[..., tuple[str, ...]], out: Path, at: dict[str, int]) -> float:
    """Run a sweep from scratch: fresh views for an untrained teacher, and students."""
    alphas = ",".join(str(round(0.1 + 0.05 * job, 2)) for job in range(at["jobs"]))
    small = (
        f"teacher.net.width={at['width']}",
        "student.net.width=8",
        "teacher.epochs=1",
        "stages=[teacher,distill]",
    )
    return seconds_of(
        *train(out, "-m", *small, f"epochs={at['epochs']}", f"alpha={alphas}", images=at["images"])
    )


@pytest.mark.parametrize("knob", GRID)
def test_growth(
    knob: str, train: Callable[..., tuple[str, ...]], tell: Callable[[Row], None], tmp_path: Path
) -> None:
    sizes = GRID[knob]
    found = [seconds(train, tmp_path / str(size), BASE | {knob: size}) for size in sizes]
    OUT.mkdir(parents=True, exist_ok=True)
    # A net's arithmetic grows with the square of its width.
    x = np.array(sizes, float) ** (2 if knob == "width" else 1)
    slope, start = np.polyfit(x, found, 1)
    off = np.abs(np.polyval((slope, start), x) - found) / found
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(sizes, found, "o", label="measured")
    fine = np.linspace(sizes[0], sizes[-1], 50)
    axes.plot(
        fine,
        slope * fine ** (2 if knob == "width" else 1) + start,
        label=f"{start:.1f} s + {slope:.3g} s each",
    )
    axes.set(
        xlabel="teacher's width" if knob == "width" else knob, ylabel="seconds", ylim=(0, None)
    )
    axes.legend()
    figure.savefig(OUT / f"growth_{knob}.png", dpi=120)
    (OUT / f"growth_{knob}.json").write_text(json.dumps({"sizes": sizes, "seconds": found}))
    most = float(off.max())
    what = "width squared" if knob == "width" else knob
    note = (
        f"{start:.1f} s + {slope:.4g} s for each of {what}; measured at {sizes}: "
        f"{np.round(found, 1).tolist()} s"
    )
    tell(
        Row(
            f"growth with {what}: off a line",
            most,
            1,
            "",
            most,
            float(off.min()),
            most,
            0.25,
            len(sizes),
            note,
        )
    )
