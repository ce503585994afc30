"""Classes that were never shown: the best bias, and the errors before and after."""

from pathlib import Path

import pytest
import torch
from commands import exit_code
from composed import TINY, composed

from kd.config.schema import check
from kd.data.digits import Digits
from kd.files.report_file import read_report
from kd.measure.omission import bias_for, omitted_errors
from kd.reports.omission import omitted_lines
from kd.runs.run import run


def test_the_bias_is_in_the_middle_of_what_is_best() -> None:
    # Class 2 is chosen above a bias of 1, 2, 3, 5: right for the last three images.
    logits = torch.tensor([[1.0, 0, 0], [0, 2, 0], [3, 0, 0], [0, 5, 0]])
    # Above 5 three are right; in any interval below, fewer.
    assert bias_for(logits, torch.tensor([0, 2, 2, 2]), [2]) == pytest.approx(6)
    assert bias_for(logits, torch.tensor([2, 2, 0, 1]), [2]) == pytest.approx(2.5)
    # Without class 2 all are right, below a bias of 4: none is needed.
    assert bias_for(4 * logits, torch.tensor([0, 1, 0, 1]), [2]) == 0


def test_no_other_bias_is_better() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (300,), generator=generator)
    logits = torch.randn(300, 5, generator=generator)
    logits[torch.arange(300), labels] += 2
    logits[:, [1, 3]] -= torch.tensor([3.0, 4.0])

    def right(bias: float) -> int:
        shifted = logits + bias * torch.tensor([0, 1, 0, 1, 0])
        return int((shifted.argmax(1) == labels).sum())

    best = bias_for(logits, labels, [1, 3])
    assert right(best) == max(right(each / 100) for each in range(-1000, 1001)) > right(0)
    found = omitted_errors((logits, labels), (logits[:100], labels[:100]), [1, 3])
    theirs = (labels[:100] == 1) | (labels[:100] == 3)
    wrong = logits[:100].argmax(1) != labels[:100]
    assert found.errors.plain() == {"all": wrong.sum(), "omitted": (wrong & theirs).sum()}
    assert found.images.plain() == {"all": 100, "omitted": theirs.sum()}
    assert found.errors_corrected.omitted < found.errors.omitted


@pytest.mark.slow
def test_a_run_says_what_became_of_them(tmp_path: Path) -> None:
    words = (*TINY, "data.omit=[3]", "alpha=1", "keep=last", "name=test", f"output_dir={tmp_path}")
    folder = run(check(composed(*words)), "a test")
    found = read_report(folder / "report.json")
    assert found.data.omitted == ["3"]
    assert found.omitted is not None
    assert set(found.omitted) == {"baseline", "student"}
    test = Digits(test_fraction=0.25).split.test
    for model in found.models[1:]:
        counts = found.omitted[model.role]
        assert counts.images.plain() == {"all": 449, "omitted": (test.labels == 3).sum()}
        assert counts.errors.all == round(449 * (1 - model.test.accuracy))
        assert counts.errors.omitted <= counts.images.omitted
    text = (folder / "report.md").read_text()
    assert "Never shown 3, the baseline makes" in text
    assert "and never see those of 3" in text
    assert exit_code("evaluate", f"run={folder}") == 0
    assert "Never shown to baseline and student: 3." in (folder / "evaluation.md").read_text()
    useless = {role: each.model_copy(update={"bias": 0.0}) for role, each in found.omitted.items()}
    told = omitted_lines(found.model_copy(update={"omitted": useless}))
    assert told[0].endswith("No other bias of 3 does better on validation.")
