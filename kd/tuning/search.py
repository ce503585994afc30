"""The search: Optuna's trials, the processes that run them, and the number still to do."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import optuna
from filelock import Timeout
from optuna.trial import FrozenTrial, Trial, TrialState

from kd.data.base import DataModule
from kd.data.trial import shorten
from kd.errors import CommandError, StopRequest, UserError
from kd.files.locks import Lock, lock_at
from kd.files.store import Store, key_of
from kd.files.writing import writable
from kd.log import say
from kd.runs.job import APART
from kd.runs.preflight import preflight
from kd.stages.batch import suit_to_data
from kd.stages.chain import chain_of
from kd.stages.open_data import open_data
from kd.stages.stage import RUNTIME_ONLY
from kd.training.processes import on_devices
from kd.tuning.compare import compare_settings
from kd.tuning.evaluation import Evaluation, PruneRequest, hide_test
from kd.tuning.request import Request
from kd.tuning.space import flat, overrides_of
from kd.tuning.study import check_same, open_study, write_trials

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
NO_MATTER = {"name", *APART}  # keys without influence on a trial's value
IMPORTANCE_FROM = 10  # finished trials; with fewer, importance is noise


def tune(request: Request, command: str) -> Path:
    """Search up to `n_trials` trials, then run the best setting and the recipe's own on several
    seeds.

    Args:
        command: command line that resumes the search.

    Returns:
        folder of the search.

    Raises:
        UserError: a user's error.
        CommandError: no trial finished.
        StopRequest: by Ctrl-C; the same command resumes the stopped trial.
    """
    trials = search(request)
    if busy := trials.running():
        say(
            f"{len(busy)} trials still run in other processes; the last of them goes on to "
            f"the comparison"
        )
        return trials.folder
    best = trials.best()
    tuned = best.user_attrs["setting"]
    level = len([trial for trial in trials.complete() if trial.value == best.value])
    tie = f"; {level} trials reach it, and this was the first" if level > 1 else ""
    say(
        f"Best of {trials.count()} trials: trial {best.number + 1}, {words(tuned)}, validation "
        f"{best.value:.4f}{tie}"
    )
    trials.tell_importance()
    compare_settings(request, tuned, trials.folder, trials.name, trials.count(), command)
    return trials.folder


def refuse_without_validation(data: DataModule) -> None:
    """Refuse data on which no search can choose.

    Raises:
        UserError: there is no validation part, or its labels must not be used.
    """
    if not data.selects("transfer"):
        key = "val_labels" if data.split.val else "val_fraction"
        accepted = "null or a number of images" if data.split.val else "a number between 0 and 1"
        raise UserError(
            f"data.{key}: found 0, but a search chooses on validation; accepted is {accepted}"
        )


def search(request: Request, data: DataModule | None = None) -> "Trials":
    """Run trials until there are `n_trials`; others may still run in other processes.

    Args:
        data: the images, which stay as they are; None to read those of the config.

    Raises:
        UserError: a user's error.
        StopRequest: by Ctrl-C; the next call resumes the stopped trial.
    """
    output = writable(Path(request.config.output_dir).expanduser())
    read = chain_of(request.config)  # refuses what is wrong before the data is read
    data = open_data(request.config) if data is None else data.with_split(data.split)
    refuse_without_validation(data)
    shorten(data, request.config.trainer)
    config, chain = suit_to_data(request.config, data, read)
    preflight(chain, config, data)
    trials = Trials(request, output)
    some_left = trials.open()
    with on_devices(config.trainer if some_left else {}), trials.at_work():
        evaluation = Evaluation(request.config, hide_test(data), Store(output / "store"))
        say(f"Search {trials.name}: {trials.count()} of {request.tuning.n_trials} trials are done")
        if some_left:
            evaluation.teachers(request.config)
        trials.run(evaluation)
    return trials


@dataclass
class Trials:
    """The study: its trials, the processes that run them, and the number still to do."""

    request: Request
    output: Path

    def __post_init__(self) -> None:
        tuning = self.request.tuning
        settings = self._settings()
        self.name = tuning.study or f"{self.request.about}_{key_of(settings)[:8]}"
        self.folder = self.output / "tune" / self.name
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        self.lock = lock_at(self.folder / "study.lock")
        self.process = uuid.uuid4().hex[:12]
        self.begun = perf_counter()
        self.tried = 0
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self.lock:
            url = tuning.storage or f"sqlite:///{(self.folder / 'study.db').resolve()}"
            # Optuna numbers a trial's epochs from 1.
            median = optuna.pruners.MedianPruner(tuning.startup_trials, tuning.warmup_epochs + 1)
            self.study = open_study(
                url, self.name, median if tuning.pruning else optuna.pruners.NopPruner()
            )
            check_same(self.study, settings)
            if not self.study.get_trials(deepcopy=False) and self.request.default is not None:
                self.study.enqueue_trial(dict(self.request.default))

    def _settings(self) -> dict[str, str]:
        """Return everything that a trial's value depends on besides the knobs, flat."""
        config = {k: v for k, v in self.request.config.model_dump().items() if k not in NO_MATTER}
        config["trainer"] = {k: v for k, v in config["trainer"].items() if k not in RUNTIME_ONLY}
        tuning = self.request.tuning
        how = {key: getattr(tuning, key) for key in ("startup_trials", "pruning", "warmup_epochs")}
        space = {
            f"search.space.{knob.name}": knob.range.model_dump()
            for knob in self.request.space.knobs
        }
        return {key: json.dumps(value) for key, value in flat({**config, **how, **space}).items()}

    def at_work(self) -> Lock:
        """Create a lock that shows other processes that this one lives.

        The lock of a dead process is free.
        """
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
        """Return the trials in progress; those of killed processes are queued again."""
        with self.lock:
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if not self._alive(trial.user_attrs.get("process", "none")):
                    self._again(trial)
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _again(self, trial: FrozenTrial) -> None:
        """Queue an interrupted trial again with its setting.

        Its student resumes.
        """
        self.study.tell(trial.number, state=TrialState.FAIL)
        self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})

    def count(self) -> int:
        """Count the ended trials that matter."""
        return len(self.study.get_trials(deepcopy=False, states=COUNTED))

    def open(self) -> bool:
        """Whether this process should start another trial now."""
        tuning = self.request.tuning
        running = len(self.running())  # first: one that ends meanwhile counts twice, not never
        left = tuning.n_trials - running - self.count()
        late = tuning.timeout is not None and perf_counter() - self.begun > tuning.timeout
        return left > 0 and not late

    def run(self, evaluation: Evaluation) -> None:
        """Run trials until there are enough, time is up, or as many failed here as were left."""
        most = self.request.tuning.n_trials - self.count()
        for _ in range(most):
            with self.lock:
                if not self.open():
                    return
                trial, setting = self._next()
            try:
                self._one(trial, setting, evaluation)
            except (StopRequest, KeyboardInterrupt):
                self._again(self.study.get_trials(deepcopy=False)[trial.number])
                raise
            with self.lock:
                knobs = [knob.name for knob in self.request.space.knobs]
                write_trials(self.study, knobs, self.folder / "trials.csv")

    def _next(self) -> tuple[Trial, dict[str, str]]:
        """Ask for a setting, equal at the same point of the search after any interruption."""
        trials = self.study.get_trials(deepcopy=False)
        new = sum("again" not in trial.user_attrs for trial in trials)
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=self.request.tuning.startup_trials,
            seed=self.request.config.seed * 1_000_003 + new,
        )
        trial = self.study.ask()
        trial.set_user_attr("process", self.process)
        setting = self.request.space.draw(trial, self.request.compose)
        trial.set_user_attr("setting", setting)
        return trial, setting

    def _one(self, trial: Trial, setting: Mapping[str, str], evaluation: Evaluation) -> None:
        try:
            config = self.request.config_with(overrides_of(setting))
            value = evaluation.value(config, trial, self.request.tuning.pruning)
        except PruneRequest as reason:
            self.study.tell(trial, state=TrialState.PRUNED)
            self._say(trial, setting, str(reason))
        except (UserError, RuntimeError, ArithmeticError) as error:
            if self.request.config.debug:
                raise
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            self._say(trial, setting, f"failed: {str(error).strip().splitlines()[0]}")
        else:
            self.study.tell(trial, value)
            self._say(trial, setting, f"{value:.4f}")

    def _say(self, trial: Trial, setting: Mapping[str, str], outcome: str) -> None:
        lost = len(self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,)))
        of = f"trial {trial.number + 1}/{self.request.tuning.n_trials + lost}"
        best = (
            f" (best {self.best().value:.4f}, trial {self.best().number + 1})"
            if self.complete()
            else ""
        )
        own = " (the recipe's own)" if setting == self.request.own else ""
        say(f"{of}: {words(setting)}{own} -> {outcome}{best}")

    def complete(self) -> list[FrozenTrial]:
        """Return the trials that finished without pruning."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def best(self) -> FrozenTrial:
        """Return the best finished trial on validation.

        The first of equal ones, which may be the recipe's own.

        Raises:
            CommandError: none has finished.
        """
        finished = self.complete()
        if not finished:
            trials = self.study.get_trials(deepcopy=False)
            last = next(
                (
                    each.user_attrs["error"]
                    for each in reversed(trials)
                    if "error" in each.user_attrs
                ),
                None,
            )
            why = f"; the last one failed: {last}" if last else ""
            raise CommandError(f"search {self.name}: none of {len(trials)} trials finished{why}")
        return max(finished, key=lambda trial: (trial.value, -trial.number))

    def tell_importance(self) -> None:
        """Print the knob importances, if there are enough trials."""
        finished = self.complete()
        few = len(finished) < IMPORTANCE_FROM or len(self.request.space.knobs) < 2
        if few or len({trial.value for trial in finished}) == 1:
            return
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        parts = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        say(
            f"Share of each knob in the differences on validation (fANOVA, {len(finished)} "
            f"finished trials): {parts}"
        )


def words(setting: Mapping[str, str]) -> str:
    """Format a setting for people."""
    return " ".join(overrides_of(setting))
