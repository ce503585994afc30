"""Reports with many classes and test images: time, memory and size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from composed import TINY, composed

from kd.config.schema import check
from kd.runs.run import run

# Everything computed from the logits of a run's three nets, in its own process for its own memory.
MEASURE = """
import json, resource, time
import numpy as np, torch
from kd.measure.metrics import paired_comparison, summary
from kd.reports.figures import as_array
from kd.reports.run_figures import figures_of_run
from kd.reports.page import image, picture

torch.set_num_threads(1)
def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

class Images:
    def __getitem__(self, index):
        return torch.zeros(len(index), 3, 64, 64, dtype=torch.uint8)

before, start = memory(), time.process_time()
n, classes = 50_000, 1_000
labels, names = torch.arange(n) % classes, [f"a name of class {i}" for i in range(classes)]
logits = {}
for seed, role in enumerate(("teacher", "baseline", "student")):
    draw = torch.Generator().manual_seed(seed)
    logits[role] = torch.randn(n, classes, generator=draw)
    logits[role][torch.arange(n), labels] += 3
made = time.process_time() - start
found = {role: summary(each, labels, logits["teacher"]) for role, each in logits.items()}
paired_comparison(logits["student"], logits["baseline"], labels)
row = {"val/acc": 0.5, "val/loss": 1.0}
histories = {role: [{"epoch": e, **row} for e in range(90)] for role in logits}
size = 0
for name, figure in figures_of_run(histories, logits, Images(), labels, names):
    size += len((image if name == "disagreement" else picture)(figure, "", "").src)
    as_array(figure)  # for TensorBoard
print(json.dumps({
    "seconds": time.process_time() - start - made, "gigabytes": memory() - before,
    "pictures": size, "report": sum(len(each.text()) for each in found.values()),
}))
"""


@pytest.mark.slow
def test_a_thousand_classes_and_fifty_thousand_images_take_less_than_a_minute_and_a_gigabyte() -> (
    None
):
    out = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(out)
    print(found)
    assert found["seconds"] < 60
    assert found["gigabytes"] < 1  # with the logits, which are 0.6 of it
    assert found["pictures"] < 1_500_000
    assert found["report"] < 50_000


@pytest.mark.slow
def test_large_logits_are_kept_for_what_many_students_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd.stages.result.SMALL", 4 * 449 * 10 - 1)  # the digits' own test part
    folder = run(check(composed(*TINY, "name=test", f"output_dir={tmp_path}")), "")
    stages = {
        model["role"]: tmp_path / "store" / model["stage"]
        for model in json.loads((folder / "report.json").read_text())["models"]
    }
    kept = {role: len(list(stage.glob("logits-*"))) for role, stage in stages.items()}
    assert kept == {"teacher": 2, "baseline": 1, "student": 0}  # the teacher's of validation too
