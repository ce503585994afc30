"""Value of a setting: its student's validation accuracy.

The test part is not accessible here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from optuna.trial import Trial

from kd.config.construct import construct
from kd.config.schema import Config
from kd.data.base import DataModule
from kd.data.trial import shortened
from kd.errors import Dropped, UserError
from kd.files.store import Done, Store
from kd.runs.preflight import preflight
from kd.stages.chain import Link, chain_of
from kd.stages.stage import Stage, complete, make_stage


class Pruned(Dropped):
    """The curve is below the median of earlier trials."""


def student_links(chain: Sequence[Link]) -> list[Link]:
    """Return the plans of the stages that the last student needs, itself at the end.

    Raises:
        UserError: the chain has no student.
    """
    by_name = {link.name: link for link in chain}
    students = [link.name for link in chain if link.role == "student"]
    if not students:
        raise UserError(
            f"stages: found [{', '.join(by_name)}]; a search needs a stage of the student, such "
            f"as distill"
        )
    needed, open_ends = set[str](), [students[-1]]
    while open_ends:
        link = by_name[open_ends.pop()]
        needed.add(link.name)
        open_ends += [
            name
            for name in (link.teacher, link.start, *link.members)
            if name and name not in needed
        ]
    return [link for link in chain if link.name in needed]


def hidden(data: DataModule) -> DataModule:
    """Copy the data without its test part, so that no trial can see it."""
    data.split = replace(data.split, test=None)  # type: ignore[arg-type]
    return data


class Evaluation:
    """Evaluates one setting: trains the student's chain, without the test part."""

    def __init__(self, config: Config, data: DataModule, store: Store) -> None:
        self.store = store
        self.data = {json.dumps(config.data, sort_keys=True): data}

    def _data(self, config: Config) -> DataModule:
        """Return the setting's data; read once for all settings with equal data config."""
        key = json.dumps(config.data, sort_keys=True)
        if key not in self.data:
            self.data = {key: hidden(shortened(construct(config.data, "data"), config.trainer))}
        return self.data[key]

    def teachers(self, config: Config, links: Sequence[Link]) -> None:
        """Finish the stages common to all trials, before the first."""
        data, done = self._data(config), dict[str, Done]()
        for link in links:
            if link.role != "student":
                done[link.name], _ = complete(
                    make_stage(link, config, data, done), self.store, data
                )

    def value(self, config: Config, trial: Trial, pruning: bool) -> float:
        """Return the student's validation accuracy, at the epoch whose weights are kept.

        Raises:
            Dropped: in the middle of the last stage.
            UserError: the setting cannot be trained.
        """
        data, links, done = self._data(config), student_links(chain_of(config)), dict[str, Done]()
        preflight(links, config, data)
        for link in links[:-1]:
            done[link.name], _ = complete(make_stage(link, config, data, done), self.store, data)
        last = links[-1]
        done[last.name] = self._watched(
            make_stage(last, config, data, done), data, trial, config, pruning
        )
        return float(done[last.name].record["val"][last.recipe.keep]["val/acc"])

    def _watched(
        self, stage: Stage, data: DataModule, trial: Trial, config: Config, pruning: bool
    ) -> Done:
        told = []

        def watch(row: Mapping[str, float], prune: bool = pruning) -> None:
            told.append(row)
            epoch = int(row["epoch"]) + 1
            trial.report(row["val/acc"], epoch)
            if prune and trial.should_prune():
                raise Pruned(f"pruned at epoch {epoch}")

        # Other processes of a distributed training have no trial to report to.
        alone = config.trainer.get("devices", 1) * config.trainer.get("num_nodes", 1) == 1
        done, _ = complete(stage, self.store, data, watch=watch if alone else None)
        for row in () if told else done.record["history"]:
            # A finished result from an earlier run counts as complete
            watch(row, prune=False)
        return done
