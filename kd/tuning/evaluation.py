"""Value of a setting: its student's validation accuracy.

The test part is not accessible here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from optuna.trial import Trial

from kd.config.schema import Config
from kd.data.base import DataModule
from kd.data.trial import shorten
from kd.errors import DropRequest, UserError
from kd.files.store import StageResult, Store
from kd.runs.preflight import preflight
from kd.stages.batch import suit_to_data
from kd.stages.chain import StagePlan
from kd.stages.complete import complete
from kd.stages.open_data import open_data, source_key
from kd.stages.stage import Stage, make_stage


class PruneRequest(DropRequest):
    """The curve is below the median of earlier trials."""


def student_plans(chain: Sequence[StagePlan]) -> list[StagePlan]:
    """Return the plans of the stages that the last student needs, itself at the end.

    Raises:
        UserError: the chain has no student.
    """
    by_name = {plan.name: plan for plan in chain}
    students = [plan.name for plan in chain if plan.role == "student"]
    if not students:
        raise UserError(
            f"stages: found [{', '.join(by_name)}]; a search needs a stage of the student, such "
            f"as distill"
        )
    needed = set[str]()
    open_ends = [students[-1]]
    while open_ends:
        plan = by_name[open_ends.pop()]
        needed.add(plan.name)
        open_ends += [
            name
            for name in (plan.teacher, plan.start, *plan.members)
            if name and name not in needed
        ]
    return [plan for plan in chain if plan.name in needed]


def hide_test(data: DataModule) -> DataModule:
    """Copy the data without its test part, so that no trial can see it."""
    data.split = replace(data.split, test=None)  # type: ignore[arg-type]
    return data


class Evaluation:
    """Evaluates one setting: trains the student's chain, without the test part."""

    def __init__(self, config: Config, data: DataModule, store: Store) -> None:
        self.store = store
        self.data = {source_key(config): data}

    def _data(self, config: Config) -> DataModule:
        """Return the setting's data; read once for all settings with equal data config."""
        key = source_key(config)
        if key not in self.data:
            self.data = {key: hide_test(shorten(open_data(config), config.trainer))}
        return self.data[key]

    def teachers(self, config: Config) -> None:
        """Finish the stages common to all trials, before the first."""
        data = self._data(config)
        results = dict[str, StageResult]()
        config, chain = suit_to_data(config, data)
        for plan in student_plans(chain):
            if plan.role != "student":
                results[plan.name], _ = complete(
                    make_stage(plan, config, data, results), self.store, data
                )

    def value(self, config: Config, trial: Trial, pruning: bool) -> float:
        """Return the student's validation accuracy, at the epoch whose weights are kept.

        Raises:
            DropRequest: in the middle of the last stage.
            UserError: the setting cannot be trained.
        """
        data = self._data(config)
        config, chain = suit_to_data(config, data)
        plans = student_plans(chain)
        results = dict[str, StageResult]()
        preflight(plans, config, data)
        for plan in plans[:-1]:
            results[plan.name], _ = complete(
                make_stage(plan, config, data, results), self.store, data
            )
        last = plans[-1]
        results[last.name] = self._complete(
            make_stage(last, config, data, results), data, trial, pruning
        )
        value = results[last.name].record.val.accuracy(last.recipe.keep)
        assert value is not None  # `tune` refuses data without a validation part
        return value

    def _complete(self, stage: Stage, data: DataModule, trial: Trial, pruning: bool) -> StageResult:
        told = []

        def watch(row: Mapping[str, float], prune: bool = pruning) -> None:
            told.append(row)
            epoch = int(row["epoch"]) + 1
            trial.report(row["val/acc"], epoch)
            if prune and trial.should_prune():
                raise PruneRequest(f"pruned at epoch {epoch}")

        result, _ = complete(stage, self.store, data, watch=watch)
        for row in () if told else result.record.history:
            # A finished result from an earlier run counts as complete
            watch(row, prune=False)
        return result
