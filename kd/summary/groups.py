"""Rows of a summary: runs with equal settings except the seed, named by their differences."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kd.config.knobs import KNOBS
from kd.config.trainer import trial_note
from kd.files.report_file import Comparison, ModelReport
from kd.summary.reports import Run
from kd.summary.significance import finite, mean

# Keys that change no result, or only the seed.
APART = {
    "seed",
    "name",
    "output_dir",
    "force",
    "debug",
    "pictures",
    "teacher.cache",
    "teacher.cache_limit",
}

Settings = Mapping[str, object]
Measure = Callable[[ModelReport], float | None]  # a number of a model

LETTERS = 40  # length of a row's name in a picture


@dataclass(frozen=True)
class Row:
    """Runs that differ only in seed.

    Attributes:
        settings: all knobs of their config, dotted, and `loss`, the names of its terms.
        parts: differences from the other rows, for people: {"temperature": "4"}.
        runs: one per seed, ordered by seed.
    """

    settings: Settings
    parts: Mapping[str, str]
    runs: Sequence[Run]

    @property
    def label(self) -> str:
        """Name of the row; `all runs` if it is the only one."""
        return " ".join(f"{knob}={value}" for knob, value in self.parts.items()) or "all runs"

    def number(self, knob: str) -> float:
        """A setting that is a number.

        Raises:
            TypeError: it is none, such as a schedule.
        """
        value = self.settings[knob]
        if not isinstance(value, (int, float)):
            raise TypeError(f"{knob} is {value!r}, which is no number")
        return float(value)

    def models(self, role: str) -> list[ModelReport]:
        """A role's models, of each run that has one."""
        return [model for run in self.runs if (model := run.model(role))]

    def values(self, role: str, measure: Measure) -> list[float]:
        """Return a number of a role's models, of each run that has it."""
        return finite(measure(model) for model in self.models(role))

    def comparison(self, measure: Callable[[Comparison], float | None]) -> list[float]:
        """Return a number of the runs' comparisons, of each run that has it."""
        return finite(measure(run.report.comparison) for run in self.runs)

    @property
    def is_trial(self) -> bool:
        """Whether a run of it saw a few batches only, as with `trainer=smoke`."""
        return any(trial_note(run.report.trainer) for run in self.runs)

    @cached_property
    def validation(self) -> float | None:
        """Mean validation accuracy of the student over the seeds; ranks the rows."""
        return mean(self.values("student", best_on_validation))


def best_on_validation(model: ModelReport) -> float | None:
    """The accuracy that a run is chosen by; None without a validation part."""
    return model.val.best


def accuracy_on_test(model: ModelReport) -> float:
    """The accuracy on the test part."""
    return model.test.accuracy


def drawn_name(rank: int, row: Row) -> str:
    """Format a row's name for a picture: shortened, without a `$` that would start a formula."""
    label = row.label
    return f"#{rank} {label if len(label) <= LETTERS else label[: LETTERS - 1] + '…'}".replace(
        "$", "\\$"
    )


def group(runs: Iterable[Run]) -> tuple[list[Row], int]:
    """Group runs into rows, the best on validation first; also counts the runs set aside.

    Of several runs with equal settings and seed the last one counts.
    """
    latest = sorted(runs, key=lambda run: run.report.finished)
    following = _following(latest)
    groups: dict[str, dict[int, Run]] = {}
    settings: dict[str, dict[str, object]] = {}
    for run in latest:
        own = {knob: value for knob, value in settings_of(run).items() if knob not in following}
        key = _text(own)
        settings[key] = own
        groups.setdefault(key, {})[run.seed] = run
    parts = _parts(list(settings.values()))
    rows = [
        Row(settings[key], parts[i], [by_seed[seed] for seed in sorted(by_seed)])
        for i, (key, by_seed) in enumerate(groups.items())
    ]
    unknown = float("-inf")
    rows.sort(
        key=lambda row: (-(unknown if row.validation is None else row.validation), _natural(row))
    )
    return rows, len(latest) - sum(len(row.runs) for row in rows)


def settings_of(run: Run) -> dict[str, object]:
    """Return a run's knobs by dotted name, without those that change no result, and `loss`."""
    config = run.report.config
    loss = config.get("loss")
    terms = loss.get("terms") if isinstance(loss, Mapping) else None
    own = {name: value for name, value in config.items() if name != "logger"}
    flat = {knob: value for knob, value in _leaves(own, "") if knob not in APART}
    return {"loss": "+".join(terms) if isinstance(terms, Mapping) and terms else "labels", **flat}


def _leaves(node: object, prefix: str) -> Iterable[tuple[str, object]]:
    """Iterate over a config's values by dotted name; a schedule is one value."""
    if isinstance(node, Mapping) and node and "schedule" not in node:
        for name, value in node.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, node


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _following(runs: Sequence[Run]) -> set[str]:
    """Return seeds of other parts (such as `teacher.seed`) that equal the run's in each run."""
    flat = [dict(_leaves(run.report.config, "")) for run in runs]
    names = {name for each in flat for name in each if name.endswith("seed")}
    return {
        n for n in names if all(e.get(n) == run.seed for e, run in zip(flat, runs, strict=True))
    }


def differing(settings: Sequence[Settings]) -> list[str]:
    """Return the knobs with several values: loss, temperature and alpha first, others by depth.

    A knob that only some rows have (an option of one loss) counts if it differs among those.
    """
    names = list(dict.fromkeys(name for each in settings for name in each))
    first = {name: i for i, name in enumerate(("loss", *KNOBS))}
    names.sort(key=lambda name: (first.get(name, len(first)), name.count(".")))
    return [
        name for name in names if len({_text(each[name]) for each in settings if name in each}) > 1
    ]


def _parts(settings: Sequence[Settings]) -> list[dict[str, str]]:
    """Describe how each of the settings differs from the others.

    Show a loss parameter only if it is not derived from temperature or alpha, and only for losses
    whose rows differ in it. Show alpha and temperature only where the loss has them.
    """
    parts: list[dict[str, str]] = [{} for _ in settings]
    for knob in differing(settings):
        inside = knob.startswith("loss.") or knob == "teacher.average_temperature"
        for own, found in zip(settings, parts, strict=True):
            if knob not in own or (knob in KNOBS and not _uses(own, knob)):
                continue
            rivals = [
                each
                for each in settings
                if knob in each and (not inside or each["loss"] == own["loss"])
            ]
            derived = inside and any(
                all(_follows(each[knob], each.get(j)) for each in rivals) for j in KNOBS
            )
            if len({_text(each[knob]) for each in rivals}) > 1 and not derived:
                found |= [part(knob, own[knob])]
    return _distinguish(parts, settings)


def _distinguish(parts: list[dict[str, str]], settings: Sequence[Settings]) -> list[dict[str, str]]:
    """Add further differences to equal descriptions, such as a knob that only one row has."""
    for alike in _alike(parts):
        names = dict.fromkeys(name for i in alike for name in settings[i])
        for name in names:
            if len({_text(settings[i][name]) if name in settings[i] else "" for i in alike}) > 1:
                for i in alike:
                    parts[i] |= [part(name, settings[i].get(name, "(none)"))]
    return parts


def _alike(parts: Sequence[Mapping[str, str]]) -> list[list[int]]:
    found: dict[str, list[int]] = {}
    for i, each in enumerate(parts):
        found.setdefault(_text(each), []).append(i)
    return [alike for alike in found.values() if len(alike) > 1]


def _uses(settings: Settings, knob: str) -> bool:
    """Whether a number of the loss is this knob, or 1 minus it."""
    inside = [value for name, value in settings.items() if name.startswith("loss.")]
    return not inside or any(_follows(value, settings[knob]) for value in inside)


def _follows(value: object, knob: object) -> bool:
    if knob is None or isinstance(value, bool):
        return False
    if isinstance(value, (int, float)) and isinstance(knob, (int, float)):
        return value == knob or abs(value - (1 - knob)) < 1e-12
    return bool(value == knob) or value == {"schedule": "one_minus", "of": knob}


def display(value: object) -> str:
    """Format a knob's value as one types it."""
    if isinstance(value, Mapping) and "schedule" in value:
        own = (f"{name}={display(each)}" for name, each in value.items() if name != "schedule")
        return f"{value['schedule']}({', '.join(own)})"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def part(knob: str, value: object) -> tuple[str, str]:
    """Format a knob and its value for people: `student` and `CNN`, `dkd.weight` and `8`."""
    if knob.endswith("._target_"):
        return knob.removesuffix("._target_").removesuffix(".net"), display(value).rpartition(".")[
            2
        ]
    if knob.startswith("loss.terms."):
        knob = knob.removeprefix("loss.terms.").replace(".loss.", ".")
    return knob, display(value)


def _natural(row: Row) -> list[tuple[int, float, str]]:
    """Sort key of equally good rows: their knobs, numbers as numbers."""
    values = [row.settings.get(knob) for knob in ("loss", *KNOBS)]
    return [
        (0, v, "") if isinstance(v, (int, float)) else (1, 0.0, str(v))
        for v in [*values, row.label]
    ]
