"""Published weights load by name and reach the published accuracy."""

import os
from pathlib import Path

import pytest
from composed import composed, plan

from kd.config.construct import construct
from kd.config.schema import check
from kd.data.base import DataModule
from kd.data.cifar10 import CIFAR10
from kd.files.store import Store
from kd.measure.metrics import predict_logits, summary
from kd.stages.result import load_net
from kd.stages.stage import complete, make_stage

DATA = Path(os.environ.get("KD_DATA_DIR", "data"))
WEIGHTS = DATA / "weights"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "file", "accuracy"),
    [(20, "12fca82f", 0.9173), (32, "d509ac18", 0.9263), (56, "4bfd9763", 0.9339)],
)
def test_akamasters_resnets_measure_what_their_author_says(
    depth: int, file: str, accuracy: float, tmp_path: Path
) -> None:
    # The errors in the README of akamaster/pytorch_resnet_cifar10: 8.27, 7.37, 6.61 %.
    path = WEIGHTS / f"resnet{depth}-{file}.th"
    if not path.is_file() or not (DATA / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no {path.name} or no cifar-10-batches-py in KD_DATA_DIR ({DATA})")
    config = check(
        composed(
            "data=cifar10",
            f"data.root={DATA}",
            "data.limit=100",  # this is about the test images
            "data.val_fraction=0.01",
            f"teacher=resnet{depth}_option_a",
            f"teacher.path={path}",
            f"output_dir={tmp_path}",
        )
    )
    data = construct(config.data, "data")
    assert isinstance(data, DataModule)
    assert isinstance(data, CIFAR10)
    done, _ = complete(
        make_stage(plan(config, "teacher"), config, data, {}), Store(tmp_path / "store"), data
    )
    found = summary(predict_logits(load_net(done), data, data.split.test), data.split.test.labels)
    assert found.accuracy == pytest.approx(accuracy, abs=5e-5)
