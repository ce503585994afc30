"""How long a comparison takes, from measured steps."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kd.comparison.request import CompareConfig
from kd.config.schema import Config
from kd.data.base import DataModule
from kd.data.trial import shorten
from kd.files.store import Store
from kd.nets.hooks import kinds_of
from kd.runs.duration import stage_seconds, times_of_image
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
    count: int = 1


class Trainings:
    """All that is to be computed, each once: trainings, and what teachers store for them.

    Attributes:
        groups: by what makes a training one of its own.
    """

    def __init__(self) -> None:
        self.groups: dict[str, TrainingGroup] = {}
        self.measured: dict[str, tuple[float, float]] = {}

    def add(
        self, plan: StagePlan, job: CompareConfig, config: Config, data: DataModule, trials: int
    ) -> None:
        """Add a stage of a job, and its trials.

        Args:
            config: of the job's run, with its precisions resolved.
        """
        each, answer = self._measure(plan, config, data)
        batch = plan.recipe.batch_size
        key = _key(plan)
        if key not in self.groups:
            whole = stage_seconds(plan, config, data, each)
            label = f"{job.nets}: {_label(plan, job)}"
            self.groups[key] = TrainingGroup(label, each * batch, whole)
        self.groups[key].count += trials
        if not answer:
            return
        views = min(1.0, data.views / plan.recipe.epochs) if data.views else 1.0
        whole = views * stage_seconds(plan, config, data, answer)
        label = f"{job.nets}: stored answers of the teacher"
        for seed in {job.seed, job.trial_seed} if trials else {job.seed}:
            key = json.dumps([plan.teacher_net, job.nets, seed], sort_keys=True, default=str)
            self.groups.setdefault(key, TrainingGroup(label, answer * batch, whole))

    def _measure(self, plan: StagePlan, config: Config, data: DataModule) -> tuple[float, float]:
        """Return seconds of an image in training, and those of an answer that is stored."""
        nets = _nets(plan)
        if nets not in self.measured:
            own, answer = times_of_image(plan, config, data)
            stored = _stores(plan, config)
            self.measured[nets] = (own, answer) if stored else (own + answer, 0.0)
        return self.measured[nets]


def forecast(jobs: Sequence[CompareConfig], done: Sequence[CompareConfig]) -> str:
    """Measure a step of each stage and add up what the jobs take, one after another.

    Stages that are in the store, and searches of which a job is done, count nothing.

    Args:
        jobs: of all methods, pairs and seeds.
        done: those of them that are finished.
    """
    found = Trainings()
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
            found.add(plan, config, final, data, trials if plan.name in tried else 0)
    groups = [group for group in found.groups.values() if group.each]
    return _text(groups, len(jobs) - len(done))


def _stores(plan: StagePlan, config: Config) -> bool:
    """Whether the teacher answers once for each view, for all trainings that see it."""
    features = kinds_of(plan.loss.signals, "t")
    return plan.teacher_net is not None and not features and config.teacher.cache != "off"


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
    live = bool(kinds_of(plan.loss.signals, "t"))
    shown = [plan.name, plan.net, plan.teacher_net, live, plan.precision, plan.recipe.batch_size]
    return json.dumps(shown, sort_keys=True, default=str)


def _label(plan: StagePlan, config: CompareConfig) -> str:
    return plan.name if plan.role != "student" else f"{plan.name} by {config.method}"


def _text(parts: Sequence[TrainingGroup], jobs: int) -> str:
    """Format the parts, equal ones together, and their sum."""
    merged: dict[str, TrainingGroup] = {}
    for each in parts:
        same = merged.setdefault(each.label, replace(each, count=0))
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
            f"In all about {duration(total)} of training. Steps were measured without the loss's "
            "own arithmetic, and pruned trials end earlier. The start, tests and report of each "
            "job come on top: seconds for small nets.",
        ]
    )


def _step(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"
