"""docs/methods.md says what is in conf/loss and kd/losses."""

import re

import pytest
from composed import METHODS, OF_TASKS

from results.make import runs_of
from results.methods import PAGE, page


@pytest.mark.slow
def test_the_table_is_as_it_was_made() -> None:
    made = page()
    assert PAGE.read_text() == made, "run `make results`"
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", made, re.MULTILINE))
    assert {*METHODS} - {*OF_TASKS} <= {*rows}
    # By hand: 64 -> 128 and 64 -> 128 with biases; two memories of 50,000 x 128, two constants
    assert "| 16,640; keeps 12,800,002 |" in rows["crd"]
    assert rows["kd"].startswith(
        "Hinton, Vinyals & Dean 2015, Distilling the Knowledge in a Neural"
    )
    assert "| logits_s, logits_t | cached | – | –" in rows["kd"]
    # Ten seeds each with 20 labels of the digits: a gain in all of them
    gains = [float(run["comparison.gain"]) for run in runs_of("digits_few")]
    assert len(gains) == 10
    assert min(gains) > 0
    assert f"Few labels, many images: {100 * sum(gains) / 10:+.1f}" in rows["kd"]
    assert rows["mgd"].endswith(" % | "), "nothing was shown"
    assert "| logits_s | none |" in rows["label_smoothing"]
