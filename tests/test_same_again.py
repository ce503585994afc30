"""The same command gives the same weights after anything else in the same process.

Other loader workers: `test_train.py`; with and without cache, and resumed: `test_cached.py`; in a
sweep and alone: `test_sweep.py`; after kills: `test_killed.py`; on two devices: `test_ranks.py`.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kd.config.schema import Config
from kd.runs.run import run

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


@pytest.mark.slow
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
