"""A search on disk: its database, the check that it is intact, and the table of trials."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState

from kd.errors import DamagedError, UserError
from kd.files.writing import whole


def open_study(url: str, name: str, pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """Open the study of that name in a database, or create it.

    Raises:
        UserError: the database cannot be written.
        DamagedError: the database was altered.
    """
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=wait)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
    except Exception as error:  # from SQLAlchemy, the driver, or Optuna
        raise UserError(f"storage: cannot keep trials in {url!r}: {_first_line(error)}") from error
    try:
        _check_intact(study, url)
    except Exception as error:  # from SQLAlchemy, the driver, Optuna, or their contents
        raise DamagedError(
            f"storage: {url!r} is damaged: {_first_line(error)}; start again with another "
            "study=NAME"
        ) from error
    return study


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _check_intact(study: optuna.Study, url: str) -> None:
    """Raise if the database cannot be read completely."""
    if url.startswith("sqlite"):
        with study._storage._backend.engine.connect() as database:  # type: ignore[attr-defined]
            wrong = database.exec_driver_sql("PRAGMA integrity_check").scalar()
        if wrong != "ok":
            raise ValueError(wrong)
    _ = study.user_attrs, study.get_trials(deepcopy=False)  # reads all of it


def check_same(study: optuna.Study, settings: Mapping[str, str]) -> None:
    """Refuse to mix trials of different settings in one study.

    Args:
        settings: everything that a trial's value depends on besides the knobs, flat.

    Raises:
        UserError: the study was started with other settings.
    """
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", dict(settings))
        return
    for key in sorted({*before, *settings}):
        if before.get(key) != settings.get(key):
            raise UserError(
                f"study: {study.study_name!r} was started with {key}={before.get(key)}, found "
                f"is {settings.get(key)}; trials of both cannot be compared, so give this "
                "search another study=NAME"
            )


def write_trials(study: optuna.Study, knobs: Sequence[str], file: Path) -> None:
    """Write a CSV with one row per trial and one column per knob."""
    with whole(file) as path, path.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["trial", "state", "validation", "epochs", "seconds", *knobs, "error"])
        for trial in study.get_trials(deepcopy=False):
            setting = trial.user_attrs.get("setting", {})
            seconds = round(trial.duration.total_seconds(), 1) if trial.duration else ""
            value = trial.value if trial.state is TrialState.COMPLETE else ""
            about = [
                trial.number + 1,
                trial.state.name.lower(),
                value,
                trial.last_step or "",
                seconds,
            ]
            cells = [setting.get(knob, "") for knob in knobs]
            table.writerow([*about, *cells, trial.user_attrs.get("error", "")])
