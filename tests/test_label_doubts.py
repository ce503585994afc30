"""The training images whose label the teacher doubts most: their order, and wrong labels found."""

import json
from pathlib import Path

import pytest
import torch
from composed import TINY, composed

from kd.config.construct import construct
from kd.config.schema import check
from kd.data.base import DataModule
from kd.reports.label_doubts import rank_doubts
from kd.runs.run import run


def test_the_surest_of_another_class_comes_first() -> None:
    p = torch.tensor(
        [
            [0.7, 0.2, 0.1],  # right
            [0.1, 0.8, 0.1],  # labelled 0: 0.7 apart
            [0.4, 0.5, 0.1],  # labelled 0: 0.1 apart
            [0.0, 0.9, 0.1],  # without a label
            [0.05, 0.05, 0.9],  # labelled 1: 0.85 apart
        ],
        dtype=torch.float64,
    )
    found = rank_doubts(p.log(), torch.tensor([0, 0, 0, -1, 1]))
    assert [each[:2] for each in found] == [(4, 2), (1, 1), (2, 1)]
    assert [each[2:] for each in found] == [
        pytest.approx((0.05, 0.9)),
        pytest.approx((0.1, 0.8)),
        pytest.approx((0.4, 0.5)),
    ]
    assert len(rank_doubts(p.log(), torch.tensor([0, 0, 0, -1, 1]), most=2)) == 2
    assert rank_doubts(p.log()[:1], torch.tensor([0])) == []


def test_wrong_labels_are_found_and_shown(tmp_path: Path) -> None:
    """Twenty of 1,213 labels are changed; a small teacher cannot learn them by heart."""
    words = [*TINY, "data.limit=null", "pictures=true", "stages=[teacher]", "teacher.epochs=12"]
    words.append("teacher.net.hidden=[64]")
    config = check(composed(*words, f"output_dir={tmp_path}", "name=doubts"))
    data: DataModule = construct(config.data, "data")
    train = data.split.train
    changed = torch.arange(20) * 60
    labels = train.labels.clone()
    labels[changed] = (labels[changed] + 3) % 10
    object.__setattr__(data.split, "train", train.with_labels(labels))
    folder = run(config, "a test", data=data)
    doubts = json.loads((folder / "report.json").read_text())["doubts"]
    assert doubts["asked"] == 1213
    most = doubts["most"]
    assert len(most) <= 50
    wrong = [each for each in most if each["place"] in changed.tolist()]
    assert len(wrong) >= 15
    assert sum(each in wrong for each in most[:15]) >= 10, "they come first"
    true = sum(each["chosen"] == int(train.labels[each["place"]]) for each in wrong)
    assert true >= 12, "and the teacher names the true class"
    for each in most:
        assert each["label"] == int(labels[each["place"]]) != each["chosen"]
    text = (folder / "report.md").read_text()
    assert "Of 1,213 training images that the teacher was asked about" in text
    assert f"{most[0]['name']} ({most[0]['label']}, says {most[0]['chosen']} " in text
    page = (folder / "report.html").read_text()
    assert "Labels that the teacher doubts" in page
