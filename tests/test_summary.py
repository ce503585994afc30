import json
import math
import statistics
import sys
from pathlib import Path

import pytest

from kd.command import run_command
from kd.report import main
from kd.summary import as_markdown, summarize


def report(name: str, seed: int, teacher: float, baseline: float, student: float, finished: str = "1") -> dict:
    models = [
        {"role": role, "test": {"accuracy": accuracy}, "val": {"best": accuracy - 0.01}}
        for role, accuracy in (("teacher", teacher), ("baseline", baseline), ("student", student))
    ]
    comparison = {"gain": student - baseline}
    return {
        "schema": 1, "name": f"{name}_s{seed}", "seed": seed, "finished": finished, "models": models,
        "comparison": comparison,
    }  # fmt: skip


def test_rows_are_means_over_seeds_ranked_by_validation() -> None:
    reports = [
        report("worse", 0, 0.9, 0.7, 0.71),
        report("better", 0, 0.9, 0.7, 0.80),
        report("better", 1, 0.9, 0.72, 0.78),
        report("better", 2, 0.9, 0.74, 0.82),
        report("better", 2, 0.9, 0.74, 0.10, finished="0"),  # an earlier attempt at the same run
    ]
    rows = summarize(reports)
    assert [row["name"] for row in rows] == ["better", "worse"]
    assert rows[0]["student"] == [0.80, 0.78, 0.82]
    text = as_markdown(rows)
    gains = [10.0, 6.0, 8.0]
    half = 4.302652729911275 * statistics.stdev(gains) / math.sqrt(3)  # t at 97.5 %, 2 degrees of freedom
    assert f"| +8.00 ± {statistics.stdev(gains):.2f} [{8 - half:+.2f}, {8 + half:+.2f}] |" in text
    assert "| better | 3 | 90.00 | 72.00 ± 2.00 | 80.00 ± 2.00 |" in text
    assert "| worse | 1 | 90.00 | 70.00 | 71.00 | +1.00 |" in text


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kd.report", *arguments])
    with pytest.raises(SystemExit) as end:
        run_command(main, "kd.report")
    return int(end.value.code or 0)


def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(report("a", seed, 0.9, 0.7, 0.8)))
    assert command(monkeypatch, str(tmp_path)) == 0
    assert "| a | 2 | 90.00 | 70.00 | 80.00 | +10.00" in capsys.readouterr().out
    assert "| a | 2 |" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no report.json"), ("{", "no report of kd"), ('{"schema": 9}', "schema 9"), ("[]", "no report of kd")],
)
def test_bad_input(
    content: str | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert command(monkeypatch, str(tmp_path)) == 2
    assert words in capsys.readouterr().err
    assert command(monkeypatch, str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
