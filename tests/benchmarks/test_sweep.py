"""Whole commands: a sweep and a single run, against a plain loop and torchdistill."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import pytest
from conftest import IMAGES
from in_turn import Row, compared, in_turn, seconds_of

EPOCHS = int(os.environ.get("KD_BENCH_EPOCHS", "10"))
TEMPERATURES, ALPHAS = "1,2,4,8", "0.1,0.5,0.9"
JOBS = len(TEMPERATURES.split(",")) * len(ALPHAS.split(","))
# The loops run some jobs; the rest is extrapolated, as each job of a loop starts from scratch.
LOOP_TEMPERATURES, LOOP_ALPHAS = os.environ.get("KD_BENCH_LOOP", "2,8;0.5").split(";")
Train = Callable[..., tuple[str, ...]]
Knobs = tuple[float, float]  # temperature, alpha


def students(out: Path) -> list[tuple[Knobs, float]]:
    """The students' accuracies on test, of all runs in an output folder."""
    reports = [json.loads(file.read_text()) for file in sorted(out.glob("*/**/report.json"))]
    return [
        ((report["config"]["temperature"], report["config"]["alpha"]), each["test"]["accuracy"])
        for report in reports
        for each in report["models"]
        if each["role"] == "student"
    ]


def looped(
    script: str,
    cifar10: str,
    teacher: str,
    *more: str,
    images: int = IMAGES,
    jobs: int | None = None,
) -> tuple[float, list[tuple[Knobs, float]]]:
    """Time a loop's whole process; returns the accuracies of its jobs too.

    Args:
        jobs: number of jobs to extrapolate to, at the mean time of those it ran.
    """
    says: list[str] = []
    given = ("--root", cifar10, "--teacher", teacher, "--images", str(images))
    seconds = seconds_of(f"{script}.py", *given, *more, says=says)
    done = json.loads(says[0].splitlines()[-1])
    if jobs is not None:
        seconds += (jobs - len(done)) * fmean(job["seconds"] for job in done)
    return seconds, [((job["temperature"], job["alpha"]), job["accuracy"]) for job in done]


def told(values: list[float]) -> str:
    return ", ".join(f"{100 * each:.1f}" for each in values) + " %"


def test_a_sweep(
    train: Train, cifar10: str, teacher: str, tell: Callable[[Row], None], tmp_path: Path
) -> None:
    """Run 12 jobs over T and alpha with fresh views in each epoch; ours between the loops."""
    swept = (f"temperature={TEMPERATURES}", f"alpha={ALPHAS}", f"epochs={EPOCHS}")
    only = ("stages=[teacher,distill]", f"teacher.path={teacher}")
    loop = ("--epochs", str(EPOCHS), "--temperatures", LOOP_TEMPERATURES, "--alphas", LOOP_ALPHAS)
    others = {"loop": looped("loop", cifar10, teacher, *loop, jobs=JOBS)}
    ours = seconds_of(*train(tmp_path, "-m", *only, *swept))
    if importlib.util.find_spec("torchdistill"):
        others["torchdistill"] = looped("torchdistill_loop", cifar10, teacher, *loop, jobs=JOBS)
    right = dict(students(tmp_path))
    assert len(right) == JOBS
    for name, (seconds, theirs) in others.items():
        mine, other = [right[knobs] for knobs, _ in theirs], [accuracy for _, accuracy in theirs]
        note = (
            f"{len(theirs)} of {JOBS} jobs of {name} were run; accuracy on test of the same jobs: "
        )
        note += f"ours {told(mine)}, {name} {told(other)}"
        tell(compared(f"sweep of 12 jobs / {name}", [ours], [seconds], target=1 / 6, note=note))
        assert abs(fmean(mine) - fmean(other)) < 0.04, note


def test_one_run_with_few_views(
    train: Train, cifar10: str, teacher: str, tell: Callable[[Row], None], tmp_path: Path
) -> None:
    """Run 30 epochs with five views per image."""
    epochs = 3 * EPOCHS
    only = (
        "stages=[teacher,distill]",
        f"teacher.path={teacher}",
        "temperature=4",
        "alpha=0.9",
        f"epochs={epochs}",
    )
    images = 2 * IMAGES
    loop = ("--epochs", str(epochs))
    ours = [seconds_of(*train(tmp_path / "before", *only, "data.views=5", images=images))]
    seconds, _ = looped("loop", cifar10, teacher, *loop, images=images)
    ours.append(seconds_of(*train(tmp_path / "after", *only, "data.views=5", images=images)))
    tell(
        compared(f"run of {epochs} epochs, views=5 / loop", ours, [seconds, seconds], target=1 / 3)
    )


def test_accuracy_of_few_views(
    train: Train, teacher: str, tell: Callable[[Row], None], tmp_path: Path
) -> None:
    """Measure the accuracy lost by five views per image instead of fresh ones; 3 seeds."""
    only = (
        "stages=[teacher,distill]",
        f"teacher.path={teacher}",
        "temperature=4",
        "alpha=0.9",
        f"epochs={3 * EPOCHS}",
    )
    found = {}
    for views in ("5", "null"):
        seconds_of(*train(tmp_path / views, "-m", *only, f"data.views={views}", "seed=0,1,2"))
        found[views] = [accuracy for _, accuracy in students(tmp_path / views)]
        assert len(found[views]) == 3
    gaps = [100 * (a - b) for a, b in zip(found["5"], found["null"], strict=True)]
    note = (
        f"views=5 less fresh views, in points: {fmean(gaps):+.2f} ± {stdev(gaps):.2f} over 3 seeds"
    )
    tell(
        compared(
            "accuracy, views=5 / fresh", found["5"], found["null"], unit="%", scale=100, note=note
        )
    )


@pytest.mark.parametrize(
    "other",
    [
        ("--workers", "0", "--layout", "contiguous_format"),
        ("--workers", "2", "--layout", "channels_last"),
        ("--precision", "32-true"),
    ],
    ids=" ".join,
)
def test_settings_of_the_loop(
    other: tuple[str, ...], cifar10: str, teacher: str, tell: Callable[[Row], None]
) -> None:
    """Check that the loop's settings are its best ones."""
    loop = ("loop", cifar10, teacher, "--epochs", "2")
    found = in_turn(
        {"best": lambda: looped(*loop)[0], "other": lambda: looped(*loop, *other)[0]}, 2, warm=False
    )
    what = f"the loop as compared / with {' '.join(other)}"
    tell(compared(what, found["best"], found["other"]))
