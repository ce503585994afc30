"""Small, offline, without a GPU: at most two threads, the embedded digits, tiny nets."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from composed import TINY, composed
from shipped import Shipped, ship

from kd.config.schema import Config, check
from kd.data.digits import Digits
from kd.runs.run import run


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """Compose and check a tiny run's config with these overrides; output goes to the test's
    folder.
    """

    def make(*overrides: str) -> Config:
        return check(composed(*TINY, "name=test", f"output_dir={tmp_path / 'out'}", *overrides))

    return make


@pytest.fixture(scope="session")
def digits() -> Digits:
    """The embedded digits, with 200 training images."""
    return Digits(test_fraction=0.25, limit=200, augment={"crop_padding": 1})


@pytest.fixture(scope="session")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of three runs with a common teacher and baseline: plain, falling temperature, DKD."""
    out = tmp_path_factory.mktemp("three")
    more = ([], ["temperature={schedule: linear, start: 9, end: 1}"], ["loss=dkd"])
    names = ("digits_kd_T2.0_a0.5_s0", "digits_kd_Tlinear-9-1_a0.5_s0", "digits_dkd_T4.0_s0")
    small = (*TINY, "pictures=true", "trainer.log_every_n_steps=1", f"output_dir={out}")
    return [
        run(check(composed(*small, f"name={name}", *each)), "a test")
        for name, each in zip(names, more, strict=True)
    ]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of tiny nets on the digits; read-only."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("out")
    return run(check(composed(*TINY, "name=test", f"output_dir={out}")), "python -m kd.train")


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Tiny run on photographs, with its student in every format; read-only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd.runs.run.figures_of", lambda *_: iter(()))
        return ship(tmp_path_factory.mktemp("shipped"))
