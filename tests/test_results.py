"""RESULTS.md, the tables in README and docs, and the pictures match `results/`."""

import csv
import json
from pathlib import Path

import pytest

from results.make import (
    PAIRED,
    PICTURES,
    added,
    cell,
    document,
    filled,
    found,
    measured,
    pages,
    paired,
    pictures,
    runs_of,
    specs,
    verdict,
)


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_pages_are_as_they_were_made(path: Path) -> None:
    assert path.read_text() == pages()[path], "run `make results`"


@pytest.mark.slow
def test_pictures_are_as_they_were_drawn() -> None:
    for file, svg in pictures():
        assert (PICTURES / file).read_bytes() == svg, f"{file}: run `make results`"


def test_each_csv_has_its_table_and_columns() -> None:
    tables = specs()
    for path in Path(__file__).parents[1].glob("results/*.csv"):
        assert path.stem in tables
        columns = csv.DictReader(path.open()).fieldnames or []
        asked = {each.partition(" ")[0] for each in tables[path.stem].columns.values()} - {"n"}
        asked = {each for each in asked if not each.endswith(PAIRED)}
        assert asked | set(tables[path.stem].rows) <= set(columns)
        assert all(run["git"] for run in runs_of(path.stem))


def test_a_cell_is_mean_deviation_and_interval() -> None:
    runs = [{"comparison.gain": value, "a": value} for value in ("0.01", "0.02", "0.03")]
    # mean 0.02, standard deviation 0.01; t(0.975, 2) = 4.302653, so 0.02 +- 4.302653 * 0.01 /
    # sqrt(3)
    assert cell(runs, "comparison.gain points") == "+2.00 ± 1.00 [-0.48, +4.48]"
    assert cell(runs, "a %") == "2.00 ± 1.00"
    assert cell(runs[:1], "a 3") == "0.010"
    assert cell(runs, "n") == "3"


def test_a_run_is_paired_with_the_other_of_its_seed() -> None:
    spec = next(iter(specs().values())).model_copy(
        update={"against": {"a": "old"}, "columns": {"less": "b.paired points"}}
    )
    runs = [
        {"seed": seed, "a": a, "b": b}
        for a, seed, b in [
            *(("old", "0", "0.5"), ("old", "1", "0.4")),
            *(("new", "1", "0.43"), ("new", "0", "0.51")),
        ]
    ]
    found = paired(spec, runs)
    assert [cell(found[:2], asked) for asked in spec.columns.values()] == [""]
    # +3 and +1 points: mean 2, standard deviation sqrt(2); t(0.975, 1) = 12.7062, over sqrt(2)
    assert cell(found[2:], "b.paired points") == "+2.00 ± 1.41 [-10.71, +14.71]"


def test_lines_of_other_machines_stay_and_those_run_again_are_replaced() -> None:
    before = [{"T": "1", "seed": "0", "x": "old"}, {"T": "2", "seed": "0", "x": "old"}]
    new = [{"T": "2", "seed": "0", "x": "new"}, {"T": "2", "seed": "1", "x": "new"}]
    assert added(new, before, ["T", "seed"]) == [*new, before[0]]


def test_knobs_that_do_not_differ_are_read_from_the_run(tmp_path: Path) -> None:
    config = {"data": {"root": "photos", "augment": {"flip": True}}, "epochs": 3}
    (tmp_path / "report.json").write_text(json.dumps({"config": config}))
    knobs = ["data.root", "epochs", "data.augment", "data.gone.deep", "baseline.net"]
    assert measured(tmp_path, knobs) == {"data.root": "photos", "epochs": "3"}


def test_verdicts() -> None:
    assert verdict(0.9, 0.91, None) == "reached"
    assert verdict(0.9, 0.89, None) == "not reached"
    assert verdict(None, 0.02, (0.01, 0.03)) == "a gain beyond chance"
    assert verdict(None, 0.02, (-0.01, 0.05)) == "no difference shown"
    assert verdict(None, -0.02, (-0.03, -0.01)) == "a loss beyond chance"
    assert verdict(None, 0.02, None) == "one run, or no spread: not known"


def test_a_page_is_filled_between_its_marks() -> None:
    name = next(iter(specs()))
    page = f"before\n<!-- table {name} -->\nold\n<!-- end -->\nafter"
    new = filled(page)
    assert "old" not in new
    assert new.startswith(f"before\n<!-- table {name} -->\n| n |")
    assert new.endswith("<!-- end -->\nafter")


def test_tables_are_joined_by_the_columns_that_all_have() -> None:
    page = filled("<!-- table digits_few cifar10_labels -->\n<!-- end -->")
    lines = page.splitlines()
    assert lines[1] == "|  | n | teacher | alone | distilled | gain, points [95 %] |"
    assert lines[3].startswith("| digits, 20 labels of 1,213 | 10 |")
    assert lines[-2].startswith("| CIFAR-10, 45,000 labels of 45,000 | 3 |")
    assert [line.count("|") for line in lines[1:-1]] == [7] * 7


def test_a_table_without_its_headline_yet_is_no_failure() -> None:
    spec = specs()["cifar10_precision"]
    of = {"student.test.accuracy": "0.85", "baseline.test.accuracy": "0.82"}
    assert found(spec, [{"seed": "0", "trainer.precision": "32-true", **of}])[0] == "not run yet"


def test_what_was_not_run_is_listed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("results.make.runs_of", lambda name: name == "digits_few" and runs_of(name))
    done, _, waiting = document().partition("## Not run yet")
    tables = specs()
    assert done.count("\n## ") == 1
    assert waiting.count("\n- ") == len(tables) - 1
    assert f"{tables['cifar10_94'].title} (`make results-run ARGS=cifar10_94`)" in waiting
