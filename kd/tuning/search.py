"""The search itself: Optuna's trials, each up to the student's validation accuracy; the test part is not even there."""

import csv
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import optuna
from filelock import Timeout
from optuna.trial import FrozenTrial, Trial, TrialState

from kd.chain import Link, chain_of
from kd.config import Config
from kd.construct import construct
from kd.data.base import DataModule
from kd.errors import Damaged, Dropped, Failed, Interrupted, UserError
from kd.files.locks import Lock, lock_at
from kd.files.store import Done, Store, key_of
from kd.files.writing import whole, writable
from kd.log import say
from kd.run import preflight
from kd.stages import RUNTIME_ONLY, Stage, complete, make_stage
from kd.tuning.compare import compare_settings
from kd.tuning.space import flat, overrides_of

if TYPE_CHECKING:  # as a command it is not imported but run
    from kd.tune import Request

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
NO_MATTER = {"name", "output_dir", "force", "debug"}  # in a config, to what a trial gives
IMPORTANCE_FROM = 10  # finished trials; of fewer it would be noise


class Pruned(Dropped):
    """The curve is below the median of the earlier trials."""


def tune(request: "Request", command: str) -> Path:
    """Search up to `n_trials` trials, then run the best setting and the recipe's own on several seeds.

    Args:
        command: the line that goes on with the search.

    Returns:
        the search's folder.

    Raises:
        UserError: for what the user can mend.
        Failed: no trial came to an end.
        Interrupted: by Ctrl-C; the same command goes on with the trial that was stopped.
    """
    output = writable(Path(request.config.output_dir).expanduser())
    links = student_links(chain_of(request.config))
    data: DataModule = construct(request.config.data, "data")
    preflight(chain_of(request.config), request.config, data)
    trials = Trials(request, output)
    with trials.at_work():
        evaluation = Evaluation(request.config, hidden(data), Store(output / "store"))
        say(f"Search {trials.name}: {trials.counted()} of {request.tuning.n_trials} trials are done")
        if trials.open():
            evaluation.teachers(request.config, links)
        trials.run(evaluation)
        if busy := trials.running():
            say(f"{len(busy)} trials still run in other processes; the last of them goes on to the comparison")
            return trials.folder
    best = trials.best()
    tuned = best.user_attrs["setting"]
    level = len([trial for trial in trials.finished() if trial.value == best.value])
    tie = f"; {level} trials reach it, and this was the first" if level > 1 else ""
    say(f"Best of {trials.counted()} trials: trial {best.number + 1}, {words(tuned)}, validation {best.value:.4f}{tie}")
    trials.tell_importance()
    compare_settings(request, tuned, trials.folder, trials.name, trials.counted(), command)
    return trials.folder


def student_links(chain: Sequence[Link]) -> list[Link]:
    """The stages that the last student needs, itself at the end.

    Raises:
        UserError: the chain has no student.
    """
    by_name = {link.name: link for link in chain}
    students = [link.name for link in chain if link.role == "student"]
    if not students:
        raise UserError(f"stages: found [{', '.join(by_name)}]; a search needs a stage of the student, such as distill")
    needed, open_ends = set[str](), [students[-1]]
    while open_ends:
        link = by_name[open_ends.pop()]
        needed.add(link.name)
        open_ends += [name for name in (link.teacher, link.start, *link.members) if name and name not in needed]
    return [link for link in chain if link.name in needed]


def hidden(data: DataModule) -> DataModule:
    """The data without its test part, so that no trial can see it."""
    data.split = replace(data.split, test=None)  # type: ignore[arg-type]
    return data


class Evaluation:
    """What one setting is worth: trains the student's chain, without the test part."""

    def __init__(self, config: Config, data: DataModule, store: Store) -> None:
        self.store = store
        self.data = {json.dumps(config.data, sort_keys=True): data}

    def _data(self, config: Config) -> DataModule:
        """The data as the setting has it; read once for all settings that have it alike."""
        key = json.dumps(config.data, sort_keys=True)
        if key not in self.data:
            self.data = {key: hidden(construct(config.data, "data"))}
        return self.data[key]

    def teachers(self, config: Config, links: Sequence[Link]) -> None:
        """Finish what all trials build on, before the first."""
        data, done = self._data(config), dict[str, Done]()
        for link in links:
            if link.role != "student":
                done[link.name], _ = complete(make_stage(link, config, data, done), self.store, data)

    def value(self, config: Config, trial: Trial, pruning: bool) -> float:
        """The student's validation accuracy, of the epoch whose weights are kept.

        Raises:
            Dropped: in the middle of the last stage.
            UserError: for a setting that cannot be trained.
        """
        data, links, done = self._data(config), student_links(chain_of(config)), dict[str, Done]()
        preflight(links, config, data)
        for link in links[:-1]:
            done[link.name], _ = complete(make_stage(link, config, data, done), self.store, data)
        last = links[-1]
        done[last.name] = self._watched(make_stage(last, config, data, done), data, trial, config, pruning)
        return float(done[last.name].record["val"][last.recipe.keep]["val/acc"])

    def _watched(self, stage: Stage, data: DataModule, trial: Trial, config: Config, pruning: bool) -> Done:
        told = []

        def watch(row: Mapping[str, float], prune: bool = pruning) -> None:
            told.append(row)
            epoch = int(row["epoch"]) + 1
            trial.report(row["val/acc"], epoch)
            if prune and trial.should_prune():
                raise Pruned(f"pruned at epoch {epoch}")

        # Other processes of a distributed training have no trial to tell.
        alone = config.trainer.get("devices", 1) * config.trainer.get("num_nodes", 1) == 1
        done, _ = complete(stage, self.store, data, watch=watch if alone else None)
        for row in () if told else done.record["history"]:
            watch(row, prune=False)  # already there from an earlier run: whole, so it counts as whole
        return done


@dataclass
class Trials:
    """The study: which trials there are, who is at them, and how many are still to do."""

    request: "Request"
    output: Path

    def __post_init__(self) -> None:
        tuning = self.request.tuning
        settings = self._settings()
        self.name = tuning.study or f"{self.request.about}_{key_of(settings)[:8]}"
        self.folder = self.output / "tune" / self.name
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        self.lock = lock_at(self.folder / "study.lock")
        self.process = uuid.uuid4().hex[:12]
        self.begun, self.tried = perf_counter(), 0
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self.lock:
            url = tuning.storage or f"sqlite:///{(self.folder / 'study.db').resolve()}"
            self.study = self._study(url)
            self._intact(url)
            self._same(settings)
            if not self.study.get_trials(deepcopy=False) and self.request.default is not None:
                self.study.enqueue_trial(dict(self.request.default))

    def _study(self, url: str) -> optuna.Study:
        wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        tuning = self.request.tuning
        never = optuna.pruners.NopPruner()
        median = optuna.pruners.MedianPruner(tuning.startup_trials, tuning.warmup_epochs + 1)  # its first step
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=wait)
            return optuna.create_study(
                storage=storage,
                study_name=self.name,
                direction="maximize",
                pruner=median if tuning.pruning else never,
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy's, the driver's, or Optuna's own
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"storage: cannot keep trials in {url!r}: {reason}") from error

    def _intact(self, url: str) -> None:
        """Refuse a database that is not as it was written, in its structure or in a finished trial."""
        try:
            if url.startswith("sqlite"):
                with self.study._storage._backend.engine.connect() as database:  # type: ignore[attr-defined]
                    wrong = database.exec_driver_sql("PRAGMA integrity_check").scalar()
                if wrong != "ok":
                    raise ValueError(wrong)
            _ = self.study.user_attrs, self.study.get_trials(deepcopy=False)  # all of it can be read
            for trial in self.finished():
                said = trial.user_attrs
                if "seal" in said and said["seal"] != _seal(trial.params, said["setting"], trial.value):
                    raise ValueError(f"trial {trial.number + 1} is not as it was written")
        except Exception as error:  # SQLAlchemy's, the driver's, Optuna's, or of what they find in there
            reason = str(error).strip().splitlines()[0]
            raise Damaged(f"storage: {url!r} is damaged: {reason}; begin anew with another study=NAME") from error

    def _settings(self) -> dict[str, str]:
        """All that a trial's value depends on besides the knobs, flat."""
        config = {k: v for k, v in self.request.config.model_dump().items() if k not in NO_MATTER}
        config["trainer"] = {k: v for k, v in config["trainer"].items() if k not in RUNTIME_ONLY}
        tuning = self.request.tuning
        how = {key: getattr(tuning, key) for key in ("startup_trials", "pruning", "warmup_epochs")}
        space = {f"search.space.{knob.name}": knob.range.model_dump() for knob in self.request.space.knobs}
        return {key: json.dumps(value) for key, value in flat({**config, **how, **space}).items()}

    def _same(self, settings: Mapping[str, str]) -> None:
        """Refuse to mix trials of different settings in one study."""
        before = self.study.user_attrs.get("settings")
        if before is None:
            self.study.set_user_attr("settings", dict(settings))
            return
        for key in sorted({*before, *settings}):
            if before.get(key) != settings.get(key):
                raise UserError(
                    f"study: {self.name!r} was begun with {key}={before.get(key)}, found is {settings.get(key)}; "
                    "trials of both cannot be compared, so give this search another study=NAME"
                )

    def at_work(self) -> Lock:
        """A lock that tells other processes that this one lives: theirs, after they died, is free."""
        return lock_at(self.folder / "locks" / f"{self.process}.lock")

    def _alive(self, process: str) -> bool:
        if process == self.process:
            return True
        path = self.folder / "locks" / f"{process}.lock"
        try:
            with lock_at(path).acquire(timeout=0):
                path.unlink(missing_ok=True)
                return False
        except Timeout:
            return True

    def running(self) -> list[FrozenTrial]:
        """The trials that processes are at; those that a killed one left are put in line again."""
        with self.lock:
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if not self._alive(trial.user_attrs.get("process", "none")):
                    self._again(trial)
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _again(self, trial: FrozenTrial) -> None:
        """Put an interrupted trial in line again, with its setting; its student goes on where it was stopped."""
        self.study.tell(trial.number, state=TrialState.FAIL)
        self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})

    def counted(self) -> int:
        """How many trials have come to an end that counts."""
        return len(self.study.get_trials(deepcopy=False, states=COUNTED))

    def open(self) -> bool:
        """Whether there is a trial left to begin: for this process, and now."""
        tuning = self.request.tuning
        left = tuning.n_trials - self.counted() - len(self.running())
        late = tuning.timeout is not None and perf_counter() - self.begun > tuning.timeout
        return left > 0 and not late

    def run(self, evaluation: Evaluation) -> None:
        """Trials until there are enough, or the time is up, or as many failed in this process as were left."""
        most = self.request.tuning.n_trials - self.counted()
        for _ in range(most):
            with self.lock:
                if not self.open():
                    return
                trial, setting = self._next()
            try:
                self._one(trial, setting, evaluation)
            except (Interrupted, KeyboardInterrupt):
                self._again(self.study.get_trials(deepcopy=False)[trial.number])
                raise
            self._write()

    def _next(self) -> tuple[Trial, dict[str, str]]:
        """Ask for a setting; the same one at the same point of the search, however often that was interrupted."""
        trials = self.study.get_trials(deepcopy=False)
        new = sum("again" not in trial.user_attrs for trial in trials)
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=self.request.tuning.startup_trials, seed=self.request.config.seed * 1_000_003 + new
        )
        trial = self.study.ask()
        trial.set_user_attr("process", self.process)
        setting = self.request.space.draw(trial, self.request.compose)
        trial.set_user_attr("setting", setting)
        return trial, setting

    def _one(self, trial: Trial, setting: Mapping[str, str], evaluation: Evaluation) -> None:
        try:
            config = self.request.configured(overrides_of(setting))
            value = evaluation.value(config, trial, self.request.tuning.pruning)
        except Pruned as reason:
            self.study.tell(trial, state=TrialState.PRUNED)
            self._say(trial, setting, str(reason))
        except (UserError, RuntimeError, ArithmeticError) as error:
            if self.request.config.debug:
                raise
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            self._say(trial, setting, f"failed: {str(error).strip().splitlines()[0]}")
        else:
            trial.set_user_attr("seal", _seal(trial.params, setting, value))
            self.study.tell(trial, value)
            self._say(trial, setting, f"{value:.4f}")

    def _say(self, trial: Trial, setting: Mapping[str, str], outcome: str) -> None:
        lost = len(self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,)))
        of = f"trial {trial.number + 1}/{self.request.tuning.n_trials + lost}"
        best = f" (best {self.best().value:.4f}, trial {self.best().number + 1})" if self.finished() else ""
        own = " (the recipe's own)" if setting == self.request.own else ""
        say(f"{of}: {words(setting)}{own} -> {outcome}{best}")

    def finished(self) -> list[FrozenTrial]:
        """The trials that came to their end, and were not stopped before."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def best(self) -> FrozenTrial:
        """The finished trial that is best on validation; of several the first, which may be the recipe's own.

        Raises:
            Failed: none has finished.
        """
        finished = self.finished()
        if not finished:
            trials = self.study.get_trials(deepcopy=False)
            last = next((each.user_attrs["error"] for each in reversed(trials) if "error" in each.user_attrs), None)
            why = f"; the last one failed: {last}" if last else ""
            raise Failed(f"search {self.name}: none of {len(trials)} trials came to an end{why}")
        return max(finished, key=lambda trial: (trial.value, -trial.number))

    def _write(self) -> None:
        """`trials.csv`: a row for each trial so far."""
        knobs = [knob.name for knob in self.request.space.knobs]
        with self.lock, whole(self.folder / "trials.csv") as path, path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["trial", "state", "validation", "epochs", "seconds", *knobs, "error"])
            for trial in self.study.get_trials(deepcopy=False):
                setting = trial.user_attrs.get("setting", {})
                seconds = round(trial.duration.total_seconds(), 1) if trial.duration else ""
                value = trial.value if trial.state is TrialState.COMPLETE else ""
                about = [trial.number + 1, trial.state.name.lower(), value, trial.last_step or "", seconds]
                cells = [setting.get(knob, "") for knob in knobs]
                table.writerow([*about, *cells, trial.user_attrs.get("error", "")])

    def tell_importance(self) -> None:
        """Which knob made most of the differences between trials, where there are enough to say."""
        finished = self.finished()
        few = len(finished) < IMPORTANCE_FROM or len(self.request.space.knobs) < 2
        if few or len({trial.value for trial in finished}) == 1:
            return
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        parts = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        say(f"Share of each knob in the differences on validation (fANOVA, {len(finished)} finished trials): {parts}")


def _seal(params: Mapping[str, Any], setting: Mapping[str, str], value: float | None) -> str:
    """A checksum of what a trial tried and found."""
    return key_of({"params": dict(params), "setting": dict(setting), "value": value})


def words(setting: Mapping[str, str]) -> str:
    """A setting for people."""
    return " ".join(overrides_of(setting))
