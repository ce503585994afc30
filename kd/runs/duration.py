"""How long a run takes, measured on a few images; and fewer epochs where that is over a budget."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kd.config.fields import seconds_of
from kd.config.precision import device_of
from kd.config.schema import Config
from kd.config.trainer import batches_of, epochs_of
from kd.data.base import DataModule
from kd.data.views import views_of
from kd.files.store import key_of
from kd.files.writing import writing
from kd.nets.build import build_net
from kd.shape import Shape
from kd.stages.batch import batches_an_epoch
from kd.stages.chain import StagePlan
from kd.teachers.live_teacher import computing_in
from kd.training.devices import world_size
from kd.training.remaining import Outlook, duration

IMAGES, TIMES = 16, 3  # of a pass that is timed, and how often
HALF_AN_HOUR = "30min"


def stage_seconds(
    plan: StagePlan, config: Config, data: DataModule, each: float | None = None
) -> float:
    """Estimate the time of a stage from that of one image, and of its teacher's answer.

    Args:
        config: with its precisions resolved.
        each: seconds of one image; None to measure them.
    """
    recipe = plan.recipe
    seen = data.for_stage(plan.sees)
    if plan.trains == "none" or not recipe.epochs:
        return 0.0
    epochs = epochs_of(config.trainer, recipe.epochs)
    batches = max(1, batches_an_epoch(recipe, seen.images_an_epoch))
    images = batches_of(config.trainer, "limit_train_batches", batches) * recipe.batch_size
    images = min(images, seen.images_an_epoch)
    # Validation is a forward pass: about a third of a training step
    each = image_seconds(plan, config, data) if each is None else each
    return float(epochs * (images + len(seen.split.val) / 3) * each)


def image_seconds(plan: StagePlan, config: Config, data: DataModule) -> float:
    """Measure a training step of a stage, per image: its views and both nets, without the loss."""
    return sum(times_of_image(plan, config, data))


def times_of_image(plan: StagePlan, config: Config, data: DataModule) -> tuple[float, float]:
    """Measure, per image of a stage, the view with the net's step, and the teacher's answer."""
    step, answer = _net_seconds(plan, config, data)
    step += _view_seconds(plan, data.for_stage(plan.sees))
    return (2 * step, 2 * answer) if plan.loss.strong else (step, answer)


def _net_seconds(plan: StagePlan, config: Config, data: DataModule) -> tuple[float, float]:
    """Measure, per image, a step of the net and a forward pass of its teacher, 0 without one."""
    device = torch.device(device_of(str(config.trainer.get("accelerator", "auto"))))
    shape = data.for_stage(plan.sees).shape
    shape_t = data.teacher_shape if plan.teacher_sees == "all" else data.shape
    count = min(IMAGES, plan.recipe.batch_size)

    def batch(of: Shape) -> torch.Tensor:
        return torch.randn(count, *of.pixels, device=device).to(memory_format=torch.channels_last)

    with torch.random.fork_rng():  # training must not depend on whether this was measured
        net = build_net(plan.net, shape, plan.where, load=False, trained=True)
        net.to(device).to(memory_format=torch.channels_last)
        step = _least_seconds(lambda x: _step(net, x, plan.precision), batch(shape))
        if plan.teacher_net is None:
            return step / count, 0.0
        teacher = build_net(plan.teacher_net, shape_t, "teacher.net", load=False).eval()
        teacher.to(device).to(memory_format=torch.channels_last)
        precision: Any = config.teacher.precision
        with torch.no_grad(), computing_in(precision, device):
            answer = _least_seconds(teacher, batch(shape_t))
    return step / count, answer / count


def _least_seconds(act: Callable[[torch.Tensor], object], x: torch.Tensor) -> float:
    """Return the shortest time of a few calls."""
    passed = []
    for _ in range(TIMES):
        started = time.perf_counter()
        act(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        passed.append(time.perf_counter() - started)
    return min(passed)


def _step(net: nn.Module, x: torch.Tensor, precision: Any) -> None:
    with computing_in(precision, x.device):
        logits = net(x)
    target = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    F.cross_entropy(logits.float(), target).backward()  # type: ignore[no-untyped-call]


def _view_seconds(plan: StagePlan, seen: DataModule) -> float:
    """Measure reading and augmentation, which for large files are most of a step."""
    train = seen.split.train
    index = torch.arange(min(IMAGES, plan.recipe.batch_size, len(train)))
    pool = train if seen.augment.mixes else None
    passed = []
    for view in range(TIMES):
        started = time.perf_counter()
        views_of(train, index, seed=0, view=view, augment=seen.augment, pool=pool)
        passed.append(time.perf_counter() - started)
    return min(passed) / len(index)


def outlook(
    plan: StagePlan, left: Sequence[StagePlan], config: Config, data: DataModule, command: str
) -> Outlook | None:
    """Say how long the stages after one take, once it is known how long that takes.

    Args:
        left: the stages that are to be trained.
        command: the line that repeats the run.

    Returns:
        None for a stage that is not trained, or on several devices, whose processes it cannot be
        sent to.
    """
    if plan not in left or world_size(config.trainer) > 1:
        return None
    chain = left[left.index(plan) :]
    estimate = cache(lambda number: stage_seconds(chain[number], config, data))

    def rest(seconds: float) -> float:
        ratio = seconds / max(estimate(0), 1e-9)  # of what it takes to the estimate
        return sum(estimate(i) for i in range(1, len(chain))) * ratio

    return Outlook(rest, f"{command} budget={HALF_AN_HOUR}")


def within_budget(
    config: Config, chain: Sequence[StagePlan], left: Sequence[StagePlan], data: DataModule
) -> Config:
    """Return the config with fewer epochs, where the stages would take longer than its budget.

    All stages lose the same share. The choice is kept in the output folder: the same command, and
    the other jobs of a sweep, then train for as many epochs and find what is finished.

    Args:
        chain: of the run.
        left: the stages that are to be trained.
    """
    assert config.budget is not None
    recipes = [each.recipe.model_dump(exclude={"seed", "optim"}) for each in chain]
    asked = {
        "budget": config.budget,
        "stages": [[each.name, each.net, mine] for each, mine in zip(chain, recipes, strict=True)],
        "trainer": config.trainer,
        "data": data.key(),
    }
    folder = Path(config.output_dir).expanduser() / "cache" / "budget"
    file = folder / f"{key_of(asked)}.json"
    if file.exists():
        chosen = {str(name): int(epochs) for name, epochs in json.loads(file.read_text()).items()}
        whole = ""
    else:
        seconds = {each.name: stage_seconds(each, config, data) for each in left}
        share = min(1.0, seconds_of(config.budget) / max(sum(seconds.values()), 1e-9))
        chosen = {
            each.name: max(1, int(each.recipe.epochs * share))
            for each in left
            if seconds[each.name]
        }
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(chosen))
        whole = f"; as asked the stages take about {duration(sum(seconds.values()))}"
        least = sum(seconds[each.name] / max(each.recipe.epochs, 1) for each in left)
        if least > seconds_of(config.budget):
            whole += f", and an epoch of each, which is the least, {duration(least)}"
    epochs = ", ".join(f"{name} {count}" for name, count in chosen.items())
    data.note(f"budget: {config.budget}{whole}; epochs: {epochs}")
    return with_epochs(config, chain, chosen)


def with_epochs(config: Config, chain: Sequence[StagePlan], chosen: Mapping[str, int]) -> Config:
    """Return the config in which the stages have these epochs.

    Args:
        chosen: by the stage's name.
    """
    top = dict[str, int]()
    teacher = dict[str, int]()
    stages = dict(config.stage)
    for plan in chain:
        if (epochs := chosen.get(plan.name)) is None:
            continue
        change = {"epochs": epochs, "min_steps": 0}
        if plan.recipe_at == f"stage.{plan.name}.":
            stages[plan.name] = stages[plan.name].model_copy(update=change)
        elif plan.recipe_at.startswith("teacher."):
            teacher = change
        else:
            top = change
    net = config.teacher.model_copy(update=teacher)
    return config.model_copy(update={**top, "teacher": net, "stage": stages})
