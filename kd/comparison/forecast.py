"""How long a comparison takes, from measured steps."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kd.comparison.request import CompareConfig
from kd.config.schema import Config
from kd.data.base import DataModule
from kd.data.trial import shorten
from kd.files.store import Store
from kd.runs.duration import image_seconds, stage_seconds
from kd.runs.preflight import pending_plans
from kd.stages.batch import suit_to_data
from kd.stages.chain import StagePlan
from kd.stages.open_data import open_data, source_key
from kd.training.remaining import duration
from kd.tuning.evaluation import student_plans


@dataclass
class TrainingGroup:
    """Trainings that take equally long.

    Attributes:
        step: seconds of an optimiser step.
        each: seconds of a training.
        count: how many there are.
    """

    label: str
    step: float
    each: float
    count: int = 0


def forecast(jobs: Sequence[CompareConfig], done: Sequence[CompareConfig]) -> str:
    """Measure a step of each stage and add up what the jobs take, one after another.

    Stages that are in the store, and searches of which a job is done, count nothing.

    Args:
        jobs: of all methods, pairs and seeds.
        done: those of them that are finished.
    """
    parts: dict[str, TrainingGroup] = {}
    measured: dict[str, float] = {}
    searched = {(config.nets, config.method) for config in done}
    finished = {(*_cell(config), config.seed) for config in done}
    sources: dict[str, DataModule] = {}
    for config in jobs:
        if (*_cell(config), config.seed) in finished:
            continue
        search = config.request()
        trials = 0 if _cell(config) in searched else config.n_trials
        searched.add(_cell(config))
        final = search.config_with([f"seed={config.seed}"]).resolve()
        source = source_key(final)
        if source not in sources:
            sources[source] = _data(final)
        data = sources[source]
        final, chain = suit_to_data(final, data)
        left = pending_plans(chain, final, data, Store(_store(final)))
        tried = {plan.name for plan in student_plans(chain) if plan.role == "student"}
        for plan in left:
            key = _key(plan)
            if key not in parts:
                if (nets := _nets(plan)) not in measured:
                    measured[nets] = image_seconds(plan, final, data)
                each = measured[nets]
                whole = stage_seconds(plan, final, data, each)
                label = f"{config.nets}: {_label(plan, config)}"
                parts[key] = TrainingGroup(label, each * plan.recipe.batch_size, whole)
                parts[key].count = 1
            if plan.name in tried:
                parts[key].count += trials
    return _text([part for part in parts.values() if part.each], len(jobs) - len(done))


def _cell(config: CompareConfig) -> tuple[str, str]:
    return config.nets, config.method


def _store(config: Config) -> Path:
    return Path(config.output_dir).expanduser() / "store"


def _data(config: Config) -> DataModule:
    return shorten(open_data(config), config.trainer)


def _key(plan: StagePlan) -> str:
    """Return what makes a training one of its own: it is done once in all jobs."""
    recipe = plan.recipe.model_dump(mode="json")
    return json.dumps([_nets(plan), recipe, plan.loss.node], sort_keys=True, default=str)


def _nets(plan: StagePlan) -> str:
    shown = [plan.name, plan.net, plan.teacher_net, plan.precision, plan.recipe.batch_size]
    return json.dumps(shown, sort_keys=True, default=str)


def _label(plan: StagePlan, config: CompareConfig) -> str:
    return plan.name if plan.role != "student" else f"{plan.name} by {config.method}"


def _text(parts: Sequence[TrainingGroup], jobs: int) -> str:
    """Format the parts, equal ones together, and their sum."""
    merged: dict[str, TrainingGroup] = {}
    for each in parts:
        same = merged.setdefault(each.label, TrainingGroup(each.label, each.step, each.each))
        same.count += each.count
    lines = [
        f"  {part.label}: {part.count} x {duration(part.each)} ({_step(part.step)} a step)"
        for part in merged.values()
    ]
    total = math.fsum(part.count * part.each for part in merged.values())
    return "\n".join(
        [
            f"{jobs} jobs to do, one after another on this machine:",
            *lines,
            f"In all about {duration(total)}. Steps were measured without the loss's own "
            "arithmetic; pruned trials end earlier, and the teacher's stored answers save time.",
        ]
    )


def _step(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"
