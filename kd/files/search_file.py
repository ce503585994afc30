"""What `kd.tune` writes at its end: `result.json`."""

from pydantic import Field

from kd.files.records import Record
from kd.files.report_file import Environment, Fraction

SCHEMA = 1


class SettingResult(Record):
    """A setting's accuracies on validation and on test, by seed."""

    overrides: list[str]
    validation: list[Fraction]
    test: list[Fraction]


class SearchResult(Record):
    """What `result.json` holds.

    Attributes:
        trials: how many the search had.
        seed: of the trials; `seeds` are those of the comparison.
        settings: `default` and, where another was better, `tuned`.
        bought: tuned minus default on test, by seed.
    """

    schema_number: int = Field(alias="schema")
    study: str
    trials: int
    seed: int
    seeds: list[int]
    settings: dict[str, SettingResult]
    bought: list[float]
    command: str
    git: str | None
    environment: Environment
