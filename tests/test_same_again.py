"""The same command gives the same weights after anything else, and nearly so with two processes.

Other loader workers: `test_train.py`; with and without cache, and resumed: `test_cached.py`; in a
sweep and alone: `test_sweep.py`; after kills: `test_killed.py`.
"""

import json
import pickle
import random
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composed import TINY
from processes import Process
from safetensors.torch import load_file

from kd.config.schema import Config
from kd.runs.run import run
from kd.training.trainer import send_as_bytes

Make = Callable[..., Config]


def results(out: Path) -> dict[str, Any]:
    """Return the weights of all stages by stage name."""
    records = {
        path.parent: json.loads(path.read_text()) for path in (out / "store").glob("*/stage.json")
    }
    return {
        record["name"]: load_file(folder / "weights.safetensors")
        for folder, record in records.items()
    }


def test_same_bits_whatever_ran_before_in_the_process(make_config: Make) -> None:
    words = ("data.augment.crop_padding=2", "loss=ctkd", "seed=3")
    base = make_config().output_dir
    run(make_config(*words, f"output_dir={base}/first"), "")
    run(make_config("loss=crd", "seed=1", f"output_dir={base}/other"), "")
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    run(make_config(*words, f"output_dir={base}/again"), "")
    first, again = (results(Path(base) / name) for name in ("first", "again"))
    assert first.keys() == again.keys() == {"teacher", "baseline", "distill"}
    for stage, weights in first.items():
        assert all(torch.equal(tensor, again[stage][name]) for name, tensor in weights.items()), (
            stage
        )


@pytest.mark.slow
def test_two_processes_give_nearly_the_weights_of_one(tmp_path: Path) -> None:
    """Two processes share each batch of 20 and sum its gradient in another order: within 1e-5 after
    20 steps.

    With batch norm they would differ: each sees the statistics of its own 10 images.
    """
    found, losses = {}, {}
    for ranks, trainer in (
        (1, ("trainer=cpu",)),
        (2, ("trainer=ddp", "trainer.strategy=ddp_fork")),
    ):
        words = (
            *trainer,
            "trainer.accelerator=cpu",
            f"trainer.devices={ranks}",
            "batch_size=20",
        )
        out = tmp_path / str(ranks)
        optim = ("optim=adamw", "optim.lr=0.003", "stages=[baseline]")
        done = Process(
            "kd.train", "model=mlp_to_mlp", *TINY, *optim, *words, f"output_dir={out}"
        ).wait()
        assert done.returncode == 0, done.stderr
        found[ranks] = results(out)["baseline"]
        (record,) = [json.loads(path.read_text()) for path in out.glob("store/*/stage.json")]
        losses[ranks] = [row["train/loss"] for row in record["history"]]
    # A step's loss covers all of its 20 images, not only those of rank 0.
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)
    torch.testing.assert_close(found[1], found[2], rtol=1e-5, atol=1e-5)


def test_tensors_go_to_new_processes_without_shared_memory() -> None:
    """Otherwise `trainer=ddp` ends in a bus error in a container, whose /dev/shm has 64 MB."""
    images = torch.zeros(100_000, dtype=torch.uint8)
    with send_as_bytes():
        sent = bytes(ForkingPickler.dumps({"images": images, "net": torch.nn.Linear(200, 200)}))
    assert len(sent) > 100_000 + 4 * 200 * 200
    assert torch.equal(pickle.loads(sent)["images"], images)
    assert len(ForkingPickler.dumps(torch.zeros(100_000))) < 10_000, "torch's way, as before"
