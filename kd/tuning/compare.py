"""Comparison after a search: the best setting and the recipe's own, on fresh seeds.

The test part is first read here.
"""

import io
import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from scipy.stats import t as student_t

from kd.config.schema import Config
from kd.errors import DamagedError
from kd.files.report_file import Report, read_report
from kd.files.run_folder import RunFolder
from kd.files.search_file import SCHEMA, SearchResult, SettingResult
from kd.files.writing import whole
from kd.log import number_of, say
from kd.reports.escape import as_code
from kd.runs.run import run
from kd.tuning.request import Request
from kd.tuning.space import overrides_of, text_of

DEFAULT, TUNED = "default", "tuned"


def compare_settings(
    request: Request, tuned: Mapping[str, str], folder: Path, study: str, trials: int, command: str
) -> SearchResult:
    """Run both settings on all seeds, and write `result.json` and `result.md`.

    Args:
        tuned: the value after `KNOB=`, by knob.
        folder: of the search; runs go into its `runs`.
        trials: number of trials in the search.
        command: command line that repeats it.
    """
    reports = {DEFAULT: _reports(request, [], folder, f"{study}_{DEFAULT}")}
    overrides = overrides_of(tuned)
    if tuned != request.own:
        reports[TUNED] = _reports(request, overrides, folder, f"{study}_{TUNED}")
    keep = request.config.keep
    settings = {
        name: SettingResult(
            overrides=overrides if name == TUNED else [],
            validation=[_validation(each, keep) for each in found],
            test=[each.student.test.accuracy for each in found],
        )
        for name, found in reports.items()
    }
    last = [*reports.values()][-1][0]
    result = SearchResult(
        schema_number=SCHEMA,
        study=study,
        trials=trials,
        seed=request.config.seed,
        seeds=request.tuning.seeds,
        settings=settings,
        bought=_gains(settings),
        command=command,
        git=last.git,
        environment=last.environment,
    )
    _write(result, request, folder)
    return result


def _validation(report: Report, epoch: str) -> float:
    """Return the student's validation accuracy of the `best` or the `last` epoch."""
    share = report.student.val.of(epoch)
    assert share is not None  # `tune` refuses data without a validation part
    return share


def _gains(settings: Mapping[str, SettingResult]) -> list[float]:
    """Return tuned minus default on test, by seed; none where the recipe's own setting stays."""
    if TUNED not in settings:
        return []
    pairs = zip(settings[TUNED].test, settings[DEFAULT].test, strict=True)
    return [tuned - default for tuned, default in pairs]


def _reports(request: Request, overrides: list[str], folder: Path, name: str) -> list[Report]:
    """Return the reports of a setting's runs, one per seed."""
    found = []
    for seed in request.tuning.seeds:
        run_name = text_of(f"{name}_s{seed}")
        config = request.config_with([*overrides, f"seed={seed}", f"name={run_name}"])
        words = ["python", "-m", "kd.train", *request.overrides, *overrides, f"seed={seed}"]
        found.append(_report(config, shlex.join(words), folder / "runs"))
    return found


def _report(config: Config, command: str, root: Path) -> Report:
    """Return the report of a run, from an earlier attempt if there is one."""
    plain = json.loads(json.dumps(config.resolve().model_dump()))
    for path in sorted(root.glob(f"*_{config.name}/report.json")):
        try:
            report = read_report(path)
        except DamagedError as error:
            say(f"{error}; the run is done again")
            continue
        if {**report.config, "logger": None} == {**plain, "logger": None}:
            say(f"{config.name}: already there")
            return report
    quiet = Console(file=io.StringIO())  # its table is in the run folder
    folder = run(config, command, folder=RunFolder(root, config.name), out=quiet)
    return read_report(folder / "report.json")


def _write(result: SearchResult, request: Request, folder: Path) -> None:
    text = as_markdown(result, request)
    for name, content in (("result.json", result.text()), ("result.md", text)):
        with whole(folder / name) as path:
            path.write_text(content)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(text)
    console.print(
        f"Report: {folder / 'result.md'}; runs beside it, trials in {folder / 'trials.csv'}"
    )


def as_markdown(result: SearchResult, request: Request) -> str:
    """Format both settings side by side, and the gain of the search."""
    seeds = ", ".join(map(str, result.seeds))
    lines = [
        f"| student, {len(result.seeds)} seed{'s' * (len(result.seeds) > 1)} | validation | test |",
        "|---|---:|---:|",
    ]
    for name, found in result.settings.items():
        setting = " ".join(found.overrides) or "the recipe's own"
        lines.append(f"| {name}: {setting} | {spread(found.validation)} | {spread(found.test)} |")
    environment = result.environment
    tuned = result.settings[TUNED].overrides if TUNED in result.settings else []
    paste = shlex.join(["python", "-m", "kd.train", *request.overrides, *tuned])
    flatters = (
        " The validation column flatters the tuned setting, which was chosen on the same images."
        if tuned
        else ""
    )
    chose = (
        f"Chosen on validation by {result.trials} trials, all with seed {result.seed}; "
        f"accuracies in %, mean and standard deviation over seeds {seeds}. Test was read only "
        f"for these runs, after the search.{flatters}"
    )
    how = (
        f"Command: {as_code(result.command)}; commit {result.git or 'unknown'}, torch "
        f"{environment.torch}, "
        f"{environment.device}, {number_of(environment.threads, 'thread')}."
    )
    return "\n".join(
        [*lines, "", gain_on_test(result.bought), "", f"    {paste}", "", chose, "", how, ""]
    )


def gain_on_test(bought: Sequence[float]) -> str:
    """State the search's gain on test in a sentence.

    Args:
        bought: tuned minus default, by seed.
    """
    gains = [100 * gain for gain in bought]
    if not gains:
        return (
            "No trial was better than the recipe's own setting, so it stays; tuning bought nothing."
        )
    mean = statistics.fmean(gains)
    if len(gains) == 1:
        return (
            f"Tuning bought {mean:+.2f} points on test; with one seed there is no telling "
            f"whether that is chance."
        )
    half = student_t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / math.sqrt(len(gains))
    sure = "" if abs(mean) > half else "; that may be chance"
    return (
        f"Tuning bought {mean:+.2f} points on test [95 % over {len(gains)} seeds: "
        f"{mean - half:+.2f} to "
        f"{mean + half:+.2f}]{sure}."
    )


def spread(values: Sequence[float]) -> str:
    """Format mean ± sample standard deviation, in per cent."""
    mean = f"{100 * statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"
