import csv
import json
import math
import re
import statistics
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from commands import exit_code
from made_reports import REPORT, as_report, model
from matplotlib.figure import Figure
from scipy.stats import t as student_t

import kd.summary.figures
from kd.summary import write_summary
from kd.summary.costs import LATENCY, cost_plot, points_of
from kd.summary.figures import families, gain_plot, heat_map, label_plot, learning_curves
from kd.summary.groups import Row, accuracy_on_test, group
from kd.summary.labels import label_curves, worth
from kd.summary.reports import Run, find_runs
from kd.summary.significance import Gain, correct_gains, gain_of, holm, pareto, t_interval
from kd.summary.tables import accuracy_table, class_table, conclusions, cost_table, in_common

NASTY = "<script>alert(1)</script>|x"


def report(
    seed: int = 0,
    student: float = 0.8,
    baseline: float | None = 0.7,
    teacher: float | None = 0.9,
    **config: Any,
) -> dict[str, Any]:
    """Make a run's report file, with the config keys under test."""
    finished = config.pop("finished", "1")
    found = {"teacher": teacher, "baseline": baseline, "student": student}
    models = [
        model(
            role,
            params=9000 if role == "teacher" else 610,
            stage=f"{role}{seed}{accuracy}",
            latency_ms={"median": 2.0 if role == "teacher" else 0.5},
            test={"accuracy": accuracy, "nll": math.nan},
            val={"best": accuracy - 0.01},
            step_ms=4.0 + seed,
            training_params=1234,
        )
        | {"history": {"epoch": [0, 1], "val/acc": [0.5, accuracy]}}
        for role, accuracy in found.items()
        if accuracy is not None
    ]
    gain = None if baseline is None else student - baseline
    comparison = {
        "gain": gain,
        "gain_ci95": None if gain is None else [gain - 0.02, gain + 0.02],
        "p_value": None if gain is None else 0.03,
    }
    own = {"config": {"seed": seed, "name": f"n{seed}", **config}, "comparison": comparison}
    return {
        **REPORT,
        "name": f"run_s{seed}",
        "seed": seed,
        "finished": finished,
        "models": models,
        **own,
    }


def kd_config(temperature: float, alpha: float, loss: str = "kd") -> dict[str, Any]:
    term = {"weight": alpha, "loss": {"temperature": temperature}}
    return {
        "temperature": temperature,
        "alpha": alpha,
        "loss": {"ce_weight": 1 - alpha, "terms": {loss: term}},
    }


def rows_of(*reports: dict[str, Any]) -> list[Row]:
    return group([Run(Path(f"run{i}"), as_report(each)) for i, each in enumerate(reports)])[0]


def gains_of(rows: list[Row]) -> list[Gain]:
    return correct_gains([kd.summary.gain_of_row(row) for row in rows])


def grid(seeds: int = 2) -> list[Row]:
    return rows_of(
        *(
            report(seed, 0.70 + t / 100 + a / 10 + seed / 50, 0.70 + seed / 100, **kd_config(t, a))
            for t in (1.0, 4.0)
            for a in (0.1, 0.9)
            for seed in range(seeds)
        )
    )


def test_runs_that_differ_by_seed_alone_are_a_row_and_rows_are_named_by_what_differs() -> None:
    rows, aside = group(
        Run(Path("x"), as_report(each))
        for each in (
            report(0, 0.71, **kd_config(4.0, 0.5), epochs=3, output_dir="a"),
            report(1, 0.72, **kd_config(4.0, 0.5), epochs=3, output_dir="b"),
            # An earlier attempt at the same run.
            report(1, 0.10, **kd_config(4.0, 0.5), epochs=3, finished="0"),
            report(0, 0.80, **kd_config(1.0, 0.5), epochs=3),
            report(0, 0.60, **kd_config(4.0, 0.5), epochs=3, optim={"lr": 0.1}),
        )
    )
    assert [row.label for row in rows] == [
        "temperature=1",
        "temperature=4 optim.lr=(none)",
        "temperature=4 optim.lr=0.1",
    ]
    assert [[run.seed for run in row.runs] for row in rows] == [[0], [0, 1], [0]]
    assert rows[1].values("student", accuracy_on_test) == [0.71, 0.72]
    assert aside == 1
    assert in_common(rows) == {"loss": "kd", "alpha": "0.5", "epochs": "3"}


def test_names_of_rows_of_several_losses() -> None:
    other = {
        "temperature": 2.0,
        "alpha": 0.5,
        "loss": {"ce_weight": 1.0, "terms": {"dkd": {"weight": 8.0}}},
    }
    moving = {"schedule": "cosine", "start": 8, "end": 2}
    rows = rows_of(
        report(0, 0.9, **kd_config(4.0, 0.5)),
        report(0, 0.8, **other),
        report(0, 0.7, **kd_config(moving, 0.5)),
    )
    assert [row.label for row in rows] == [
        "loss=kd temperature=4",
        "loss=dkd",  # in which there is no temperature
        "loss=kd temperature=cosine(start=8, end=2)",
    ]


def test_a_teacher_that_has_the_seed_of_the_run_does_not_split_a_row() -> None:
    own = [report(seed) for seed in (0, 1)]
    for each in own:
        each["config"]["teacher"] = {"seed": each["seed"]}
    assert len(rows_of(*own)) == 1
    own[1]["config"]["teacher"] = {"seed": 7}
    assert len(rows_of(*own)) == 2


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.5; none may be below its
    # predecessor.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.02, 0.011]) == pytest.approx([0.022, 0.022])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_gain_over_seeds_by_the_formula() -> None:
    values = [0.10, 0.06, 0.08]
    error = statistics.stdev(values) / math.sqrt(3)
    gain = gain_of(values, [(None, None)] * 3)
    half = 4.302652729911275 * error  # t at 97.5 %, 2 degrees of freedom
    assert gain.interval == pytest.approx((0.08 - half, 0.08 + half))
    assert gain.p == pytest.approx(2 * student_t.sf(0.08 / error, 2))
    assert gain.test == "t"
    assert t_interval([0.1]) is None
    assert correct_gains([gain])[0].reading == "better than the baseline"
    assert correct_gains([gain, *[gain_of([0.1, -0.1], [(None, None)] * 2)] * 5])[
        0
    ].reading.endswith("once corrected")


def test_gain_without_spread_and_of_one_seed() -> None:
    same = correct_gains([gain_of([0.1, 0.1 + 1e-17], [(None, None)] * 2)])[0]
    assert (same.p, same.interval) == (None, None)
    assert "no spread" in same.reading
    assert gain_of([0.0, 0.0], [(None, None)] * 2).p == 1.0
    one = correct_gains([gain_of([-0.1], [((-0.2, -0.05), 0.001)])])[0]
    assert (one.test, one.interval, one.p) == ("McNemar", (-0.2, -0.05), 0.001)
    assert one.reading == "worse than the baseline on these images; one seed, its spread is unknown"
    assert gain_of([], []).reading == ""


def test_pareto_by_hand() -> None:
    points = [(1.0, 0.5), (2.0, 0.7), (3.0, 0.6), (2.0, 0.65), (5.0, 0.7), (9.0, 0.9)]
    assert pareto(points) == [0, 1, 5]
    assert pareto([(1.0, 0.5), (1.0, 0.5)]) == [0, 1]


def test_points_share_teachers_and_baselines() -> None:
    points = points_of(grid(), LATENCY)
    assert [point.role for point in points].count("teacher") == 1
    assert [point.role for point in points].count("student") == 4
    assert [point.role for point in points].count("baseline") == 1
    assert next(point for point in points if point.role == "teacher").at == (2.0, 0.9)


def written(figure: Figure | None) -> list[str]:
    assert figure
    figure.draw_without_rendering()
    return [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel())]


def test_pictures_name_their_axes_and_units() -> None:
    rows = grid()
    assert list(families(rows)) == [""]
    figure = heat_map(families(rows)[""])
    assert written(figure)[:4] == ["alpha", "temperature"] * 2
    cells = [text.get_text() for text in figure.axes[1].texts]
    # T = 1, alpha = 0.1, seeds 0 and 1: 0.72 and 0.74, whose standard deviation is 0.02 / sqrt(2)
    assert cells[0] == "73.00\n± 1.41"
    assert len(cells) == 4
    assert written(gain_plot(rows, gains_of(rows))) == [
        "gain in test accuracy over the baseline, percentage points",
        "runs",
    ]
    assert written(cost_plot(points_of(rows, LATENCY), LATENCY)) == [
        "latency of one image, ms (log)",
        "test accuracy",
    ]
    curves = learning_curves(rows)
    assert written(curves) == ["epoch", "validation accuracy"]
    assert curves
    lines = {str(line.get_label()): line for line in curves.axes[0].lines}
    assert lines["teacher"].get_linestyle() == "--"
    assert list(lines["#1 temperature=4 alpha=0.9"].get_ydata()) == pytest.approx([0.5, 0.84])
    assert "not run" in [text.get_text() for text in heat_map(rows[:3]).axes[0].texts]


def few_labels(
    students: list[float], baselines: list[float], counts: list[int], seeds: int = 2
) -> list[dict[str, Any]]:
    """Reports of a sweep over numbers of labels; seeds differ by 0.02."""
    return [
        {
            **report(seed, s + seed / 50, b + seed / 50, data={"labels": n}, temperature=2.0),
            "data": {
                "name": "made",
                "classes": ["a", "b"],
                "train": 1000,
                "val": 9,
                "test": 9,
                "labels": n,
            },
        }
        for s, b, n in zip(students, baselines, counts, strict=True)
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("students", "baselines", "wanted", "said_of_it"),
    [
        # 0.80 is half way from 0.70 (of 100) to 0.90 (of 1000): the geometric mean of the two
        # counts.
        ([0.80, 0.85, 0.9], [0.5, 0.7, 0.9], 100 * math.sqrt(10),
         "about 316 labels to be as good: the teacher is worth some 306 labels, 31.6 times"),
        ([0.95, 0.95, 0.95], [0.5, 0.7, 0.9], None,
         "is not as good with any number of labels tried, up to 1,000"),
        ([0.5, 0.7, 0.9], [0.6, 0.7, 0.9], 10.0, "is worth no further label"),
    ],
)  # fmt: skip
def test_how_many_labels_the_teacher_is_worth(
    students: list[float], baselines: list[float], wanted: float | None, said_of_it: str
) -> None:
    rows = rows_of(*few_labels(students, baselines, [10, 100, 1000]))
    (curve,) = label_curves(rows)
    assert curve.counts == [10, 100, 1000]
    found = worth(curve, 0)
    assert found == (None if wanted is None else pytest.approx(wanted, rel=1e-9))
    (line,) = (line for line in conclusions(rows, gains_of(rows)) if line.startswith("With"))
    assert said_of_it in line
    assert f"With 10 labels the student has {100 * students[0] + 1:.2f} % on test" in line
    assert written(label_plot(curve)) == ["labels of student and baseline (log)", "test accuracy"]
    means, sds = curve.band("student")
    assert means == pytest.approx([each + 0.01 for each in students])
    assert sds == pytest.approx([0.02 / math.sqrt(2)] * 3)


def test_a_sweep_over_labels_is_drawn_into_a_file(tmp_path: Path) -> None:
    counts = [10, 100]
    list(folders(tmp_path, few_labels([0.8, 0.9], [0.5, 0.7], counts)))
    write_summary([tmp_path])
    drawn = (tmp_path / "labels.svg").read_text()
    write_summary([tmp_path])
    assert (tmp_path / "labels.svg").read_text() == drawn
    assert drawn.count("<svg") == 1
    assert not label_curves(grid())


def test_many_rows_stay_readable() -> None:
    rows = rows_of(*(report(0, 0.5 + i / 1000, **kd_config(1.0 + i, 0.5)) for i in range(80)))
    figure = gain_plot(rows, gains_of(rows))
    assert figure
    assert len(figure.axes[0].get_yticks()) == 30
    curves = learning_curves(rows)
    assert curves
    assert len(curves.axes[0].lines) == 2 + 5
    captions = [picture.caption for picture in kd.summary.figures.pictures(rows, gains_of(rows))]
    assert sum("Of 80 rows the" in caption for caption in captions) == 2


def test_what_is_missing_is_left_out() -> None:
    rows = rows_of(report(0, 0.8, None, None), report(1, 0.6, None, None))
    cells = [cell.text for cell in accuracy_table(rows, gains_of(rows)).cells[0]]
    assert cells == ["1", "all runs", "2", "69.00 ± 14.14", "70.00 ± 14.14", *[""] * 6]
    pictures = list(kd.summary.figures.pictures(rows, gains_of(rows)))
    assert [each.alt for each in pictures] == ["Validation accuracy by epoch"]
    assert "one seed" in " ".join(conclusions(rows_of(report()), gains_of(rows_of(report()))))
    # The reports do not say that any gap was closed.
    assert "no gap to close" in " ".join(conclusions(rows_of(report()), [Gain()]))
    assert not any("gap" in line for line in conclusions(rows, gains_of(rows)))


def folders(root: Path, reports: list[dict[str, Any]]) -> Iterator[Path]:
    for i, each in enumerate(reports):
        (root / f"run{i}").mkdir()
        (root / f"run{i}" / "report.json").write_text(json.dumps(each))
        yield root / f"run{i}"


def test_what_training_cost_stands_beside_what_the_student_costs() -> None:
    table = cost_table(rows_of(report(seed=0), report(seed=2)))
    found = dict(zip(table.columns, table.cells[0], strict=True))
    assert found["a step of training, ms"].text == "5.0 ± 1.4"  # of 4 and 6: sd = sqrt(2)
    assert found["parameters that training added"].text == "1.23 k"
    assert found["latency, ms"].text == "0.500"


def test_what_accuracy_hides_where_classes_are_uneven() -> None:
    several = [report(seed=0), report(seed=1)]
    assert class_table(rows_of(*several)) is None
    for balanced, each in zip((0.5, 0.7), several, strict=True):
        each["models"][2]["test"] |= {"balanced_accuracy": balanced, "auroc": 0.75}
        each["models"][2]["test"] |= {"map": balanced, "f1_macro": 0.25}
    table = class_table(rows_of(*several))
    assert table
    found = dict(zip(table.columns, [cell.text for cell in table.cells[0]], strict=True))
    assert found["student: balanced accuracy, %"] == "60.00 ± 14.14"
    assert found["student: AUROC"] == "0.7500"
    assert found["student: mAP"] == "0.6000 ± 0.1414"
    assert found["student: macro F1"] == "0.2500"
    assert not any(name.startswith("teacher") for name in found)


def test_files(tmp_path: Path) -> None:
    reports = [
        report(seed, 0.8 + seed / 100, 0.7, **kd_config(t, a, NASTY))
        for t in (1.0, 4.0)
        for a in (0.5, 0.9)
        for seed in range(2)
    ]
    list(folders(tmp_path, reports))
    (tmp_path / "unfinished.partial").mkdir()
    (tmp_path / "unfinished.partial" / "report.json").write_text("{")
    assert len(find_runs([tmp_path, tmp_path / "run0"])) == 8  # each once
    text = write_summary([tmp_path])
    assert (tmp_path / "summary.md").read_text() == text
    assert (
        "| 1 | temperature=1 alpha=0.5 | 2 | 79.50 ± 0.71 | 80.50 ± 0.71 | 70.00 | 90.00 "
        "| +10.50 ± 0.71 [" in text
    )

    lines = list(csv.DictReader(StringIO((tmp_path / "summary.csv").read_text())))
    assert [
        (line["row"], line["seed"], line["temperature"], line["alpha"]) for line in lines[:3]
    ] == [
        ("temperature=1 alpha=0.5", "0", "1", "0.5"),
        ("temperature=1 alpha=0.5", "1", "1", "0.5"),
        ("temperature=1 alpha=0.9", "0", "1", "0.9"),
    ]
    assert len(lines) == 8
    assert float(lines[1]["student.test.accuracy"]) == 0.81
    assert float(lines[1]["student.test.accuracy_ci95.high"]) == 0.9
    assert lines[1]["student.test.nll"] == ""  # nan
    assert float(lines[1]["comparison.gain"]) == 0.81 - 0.7

    page = (tmp_path / "summary.html").read_text()
    assert NASTY.split("|")[0] not in page
    assert "&lt;script&gt;" in page
    assert page.count("<script>") == 1  # our own
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|https?://""", page)
    assert page.count('src="data:image/svg+xml;base64,') == 5


def test_trials_are_said_to_be_trials() -> None:
    smoke = {"trainer": {"limit_train_batches": 2, "limit_test_batches": 2}}
    real = [report(seed, 0.8 + seed / 100, 0.7) for seed in range(2)]
    trials = [report(seed, 0.6 + seed / 100, 0.5, **smoke) for seed in range(2)]
    for reports, said in (
        (real, None),
        (trials, "- All rows are trials on a few batches of everything (trainer=smoke)"),
        ([*real, *trials], "- Of these rows, 2 are trials"),
    ):
        rows = rows_of(*reports)
        gains = gains_of(rows)
        told = conclusions(rows, gains)
        text = kd.summary.markdown_of("title", "about", rows, gains, told)
        assert (said or "trials") in text if said else "trials" not in text
        assert (said or "- ").removeprefix("- ") in kd.summary.page_of("", "", rows, gains, told)
        assert text.count("a trial: means nothing |") == (0 if said is None else 1)
        assert ("Best on validation" in text) == (reports != trials)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(folders(tmp_path, [report(seed) for seed in range(2)]))
    assert exit_code("report", str(tmp_path / "run0"), str(tmp_path / "run1")) == 0
    conclusions = capsys.readouterr()
    assert "| all runs | 2 |" in conclusions.out
    assert "run0: summary.csv, summary.md, summary.html" in conclusions.err
    assert {path.name for path in (tmp_path / "run0").glob("summary.*")} == {
        "summary.csv",
        "summary.md",
        "summary.html",
    }
