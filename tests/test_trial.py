"""trainer=smoke: two batches of everything, and a report that says so."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import exit_code
from composed import TINY
from torch import Tensor, nn

from kd.data.base import DataModule
from kd.data.digits import Digits
from kd.data.trial import shorten
from kd.errors import UserError
from kd.nets.mlp import MLP

SMALL = ("model=mlp_to_mlp", *TINY)


def parts(**options: Any) -> DataModule:
    return shorten(Digits(), options)


def test_how_many_images_are_left_and_each_class_is_among_them() -> None:
    whole = Digits().split
    size = whole.test.pixels.batch  # 64 or 256
    split = parts(limit_test_batches=1, limit_val_batches=0.5).split
    assert len(split.test) == min(size, len(whole.test))
    batches = -(-len(whole.val) // size)
    assert len(split.val) == min(int(0.5 * batches) * size, len(whole.val))
    counts = torch.bincount(split.test.labels)
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 1
    assert len(parts(limit_train_batches=2, limit_test_batches=2).split.test) == 2 * 32
    assert len(parts().split.test) == len(whole.test)
    assert len(parts(limit_test_batches=1.0).split.test) == len(whole.test)
    assert len(parts(limit_test_batches=999).split.test) == len(whole.test)
    with pytest.raises(UserError, match=r"trainer.limit_val_batches: found 0.001, which is less"):
        parts(limit_val_batches=0.001)


@pytest.mark.parametrize("name", ["train", "incremental"])
def test_smoke_asks_about_two_batches_of_everything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each net gets two batches of training, validation, the watch's two views, and test."""
    monkeypatch.setattr("kd.data.images.Pixels.batch", property(lambda _: 20))
    asked: Counter[bool] = Counter()
    forward = MLP.forward

    def counted(net: nn.Module, x: Tensor) -> Tensor:
        if x.shape[0] > 2 and x.device.type == "cpu":  # neither the latency nor what is tried out
            asked[net.training] += len(x)
        return forward(net, x)

    monkeypatch.setattr(MLP, "forward", counted)
    left_out = ("data.limit", "teacher.batch_size")
    budget = [word for word in SMALL if not word.startswith(left_out)] + ["data=digits"]
    if name == "incremental":
        budget = ["student=mlp", "student.net.hidden=[8]", "batch_size=20", "pictures=false"]
        budget += ["incremental.tasks=2"]
    assert exit_code(name, *budget, "trainer=smoke", f"output_dir={tmp_path}") == 0
    said = capsys.readouterr().out
    assert "its figures mean nothing" in said
    (report,) = tmp_path.glob("runs/*/report.json")
    found = json.loads(report.read_text())
    assert found["data"]["test"] == 40
    for file in ("report.md", "report.html", "MODEL_CARD.md"):
        assert "its figures mean nothing" in (report.parent / file).read_text(), file
    if name == "train":  # 3 stages of 2 batches, 50 typed and 32 not; teacher pads to 64
        assert asked[True] == 2 * 2 * 50 + 2 * 32
        # 3 nets: validation while training, reference, test; 40 images in views of the watch, two
        # plain and two as the student sees them; answers for two batches and what folding tries
        # out, padded to 64.
        assert asked[False] <= 3 * 3 * 40 + 4 * 40 + 4 * 64


def test_a_run_that_is_no_trial_measures_the_whole_test(tmp_path: Path) -> None:
    words = ("trainer.limit_val_batches=1", "stages=[baseline]", f"output_dir={tmp_path}")
    assert exit_code("train", *SMALL, *words) == 0
    (report,) = tmp_path.glob("runs/*/report.json")
    assert json.loads(report.read_text())["data"]["test"] == 449  # a quarter of 1,797
    assert "mean nothing" not in (report.parent / "report.md").read_text()


def test_a_trial_with_few_labels_validates_on_two_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd.data.images.Pixels.batch", property(lambda _: 20))
    validated = []
    loader = DataModule.val_loader

    def noted(data: DataModule, *rest: Any, **options: Any) -> Any:
        validated.append(len(data.split.val))
        return loader(data, *rest, **options)

    monkeypatch.setattr(DataModule, "val_loader", noted)
    words = ("data.labels=20", "trainer=smoke", f"output_dir={tmp_path}")
    assert exit_code("train", *SMALL, *words) == 0
    assert validated
    assert set(validated) == {40}
