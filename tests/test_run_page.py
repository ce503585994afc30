"""A run's page: complete, in one file, and safe with any name."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from made_reports import as_report

from kd.files.report_file import EpochAccuracies, Latency, ModelReport
from kd.measure.metrics import summary
from kd.reports.run_page import as_page, cost_table, quality_table
from kd.reports.run_report import compare, verdict


@pytest.fixture
def report(finished: Path) -> dict[str, Any]:
    return json.loads((finished / "report.json").read_text())  # type: ignore[no-any-return]


def test_the_page_of_a_run(three_runs: list[Path]) -> None:
    page, report = (
        (three_runs[0] / "report.html").read_text(),
        json.loads((three_runs[0] / "report.json").read_text()),
    )
    for title in (
        "can do",
        "cost",
        "Learning curves",
        "confuse",
        "confidence",
        "Where they differ",
        "repeat it",
    ):
        assert re.search(f"<h2>[^<]*{title}", page), title
    assert page.count("<img") == 1 + 3 + 3 + 1 + 1
    assert page.count('src="data:image/') == page.count("<img")
    assert not re.search(r"href=|src=\"(?!data:)|url\(", page), "nothing is fetched"
    assert report["command"] in page
    assert all(model["stage"] in page for model in report["models"])
    assert "temperature: 2.0" in page  # the config


def test_without_pictures(finished: Path, report: dict[str, Any]) -> None:
    page = (finished / "report.html").read_text()
    assert "<img" not in page
    assert all(line.replace("'", "&#39;") in page for line in verdict(as_report(report)))


def test_names_are_shown_and_not_run(report: dict[str, Any]) -> None:
    evil = "<script>alert(1)</script>"
    report |= {"name": evil, "command": f"python {evil}"}
    report["data"] |= {"skipped": [{"file": evil, "reason": evil}], "name": evil}
    report["config"]["name"] = evil
    page = as_page(as_report(report), {})
    assert evil not in page
    assert page.count("&lt;script&gt;alert(1)") >= 6


def test_tables(report: dict[str, Any]) -> None:
    teacher, _, student = report["models"]
    teacher |= {"params": 1000, "macs": 500, "bytes": 4000}
    student |= {"params": 250, "macs": 1000, "bytes": 4000}
    student["test"] |= {
        "accuracy": 0.5,
        "accuracy_ci95": [0.4, 0.6],
        "agreement": None,
        "ece": 0.0123,
    }
    costs = [cell.text for cell in cost_table(as_report(report)).cells[2]]
    assert costs[2:5] == ["250 (1/4)", "1 k (×2)", "4 kB (1/1)"]
    # The teacher is not compared with itself
    assert "(" not in cost_table(as_report(report)).cells[0][2].text
    row = [cell.text for cell in quality_table(as_report(report)).cells[2]]
    assert row[2] == "50.00 [40.0, 60.0]"
    assert (row[4], row[6]) == ("", "1.23")


def test_figures_without_meaning_are_not_said(report: dict[str, Any]) -> None:
    """Meaningless values: a share of an insignificant lead, of a chance accuracy, a factor of 1."""
    teacher, _, student = report["models"]
    found = report["comparison"]
    found |= {"gain": 0.02, "gain_ci95": [0.01, 0.03], "p_value": 0.01, "gap_closed": 2.0}
    found |= {"lead": 0.01, "lead_ci95": [-0.01, 0.03], "retention": None}
    found |= {"speedup": 0.96, "compression": 1.0}
    text = " ".join(verdict(as_report(report)))
    assert "200 %" not in text
    assert "(+1.00 points) may be chance" in text
    assert "Next to the teacher: as fast, as many parameters." in text
    found |= {"lead_ci95": [0.005, 0.03], "retention": 0.95, "speedup": 1.26, "compression": 0.5}
    text = " ".join(verdict(as_report(report)))
    assert "Of the teacher's lead over the baseline, 200 % is closed." in text
    assert "1.3 times faster, 2.0 times more parameters, keeping 95.0 % of its accuracy." in text
    found["retention"] = 3.0
    teacher["test"]["accuracy"], student["test"]["accuracy"] = 0.2, 0.6
    text = " ".join(verdict(as_report(report)))
    assert "300" not in text
    assert "2.0 times more parameters, 40.00 points more accurate." in text


def test_a_gain_of_untrained_nets_or_on_few_images_is_cautioned(report: dict[str, Any]) -> None:
    report["comparison"] |= {"gain": 0.02, "gain_ci95": [-0.3, 0.3], "p_value": 1.0}
    few = "8 test images are too few to tell nets apart."
    for images, epochs, said, unsaid in (
        (800, 2, "Gain of distillation: +2.00 points", few),
        (8, 2, few, "Nothing was learned"),
        (800, 0, "Nothing was learned (epochs=0)", "Gain of distillation"),
    ):
        report["data"]["test"] = images
        for model in report["models"]:
            model["epochs"] = epochs
        text = " ".join(verdict(as_report(report)))
        assert said in text
        assert unsaid not in text


@pytest.mark.parametrize(("right", "retention"), [(10, None), (60, 0.5)])
def test_retention_is_of_a_teacher_that_is_better_than_chance(
    right: int, retention: float | None
) -> None:
    """10 of 100 images in 10 classes are chance; 60 are not."""
    labels = torch.arange(100) % 10
    said = torch.where(torch.arange(100) < right, labels, (labels + 1) % 10)
    logits = {
        "teacher": torch.nn.functional.one_hot(said, 10).float(),
        "student": torch.nn.functional.one_hot((labels + (torch.arange(100) >= 30)) % 10).float(),
    }
    models = [
        ModelReport(
            role=role,
            net="",
            params=1,
            macs=1,
            bytes=4,
            latency_ms=Latency(batch=1, median=1.0, p95=1.0),
            test=summary(logits[role], labels),
            val=EpochAccuracies(best=0.5, last=0.5),
            stage="0",
            epochs=1,
            seconds=1.0,
        )
        for role in logits
    ]
    assert compare(models, logits, labels).retention == retention


def test_whatever_is_missing(report: dict[str, Any]) -> None:
    alone = copy.deepcopy(report)
    alone["models"] = [model for model in report["models"] if model["role"] == "student"]
    alone["comparison"] = dict.fromkeys(report["comparison"])
    alone["teaching"] = None
    assert '<ul class="said">' not in as_page(as_report(alone), {})
