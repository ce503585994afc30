"""Small, offline, without a GPU: one thread, the embedded digits, tiny nets.

What takes seconds to import is imported by the fixtures. The process that hands the tests out
reads this file too, before the others start, and needs none of it.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import absl.logging
import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from shipped import Shipped

    from kd.config.schema import Config
    from kd.data.digits import Digits

# As `make test` does, before torch reads it: forked processes hang with several threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hydra closes all handlers, and absl's then closes its stream, which pytest still writes to.
absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)


# Their tests train or run commands: `make test-fast` does not even read them.
SLOW = {
    "test_bad_input",
    "test_benchmark",
    "test_cached",
    "test_chain",
    "test_compare",
    "test_damaged",
    "test_dashboard",
    "test_duplicates",
    "test_duration",
    "test_evaluate",
    "test_export",
    "test_fake_quantize",
    "test_feature_runs",
    "test_figures",
    "test_finetune",
    "test_finished",
    "test_grad_cam",
    "test_hostile",
    "test_hub",
    "test_incremental",
    "test_knobs",
    "test_label_doubts",
    "test_load",
    "test_loss_numbers",
    "test_no_room",
    "test_other_teachers",
    "test_predict",
    "test_pretrained",
    "test_protocol",
    "test_run_page",
    "test_stages",
    "test_student_start",
    "test_summary",
    "test_sweep",
    "test_teacher_size",
    "test_train",
    "test_trainer",
    "test_trial",
    "test_tune",
    "test_watch",
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these files unread where only the others' tests run: reading them takes seconds."""
    return True if collection_path.stem in SLOW and config.option.markexpr == "not slow" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of these files slow; in others the slow ones are marked where they stand."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker("slow")


@pytest.fixture(autouse=True, scope="session")
def _config_files_are_parsed_once() -> Iterator[None]:
    """Keep what Hydra parsed of a file: composing is a tenth of the time of all tests."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra.plugins.config_source import ConfigResult

    parse = FileConfigSource.load_config
    parsed: dict[tuple[str, int, int], bytes] = {}  # loading a pickle is a fast deepcopy

    def load(self: FileConfigSource, config_path: str) -> ConfigResult:
        path = Path(self.path, f"{config_path.removesuffix('.yaml')}.yaml")
        if not path.exists():
            return parse(self, config_path)
        stat = path.stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        if key not in parsed:
            parsed[key] = pickle.dumps(parse(self, config_path))
        return pickle.loads(parsed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileConfigSource, "load_config", load)
        yield


@pytest.fixture(autouse=True, scope="session")
def _latencies_are_timed_briefly() -> Iterator[None]:
    """A run times each of its nets for a quarter of a second: minutes, over all tests."""
    from kd.measure.costs import latency

    defaults = {**(latency.__kwdefaults__ or {}), "seconds": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "__kwdefaults__", defaults)
        yield


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first of pytest's processes to ask for it has filled."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(autouse=True)
def _threads() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """Compose and check a tiny run's config with these overrides; output goes to the test's
    folder.
    """
    from composed import TINY, composed

    from kd.config.schema import check

    def make(*overrides: str) -> Config:
        return check(composed(*TINY, "name=test", f"output_dir={tmp_path / 'out'}", *overrides))

    return make


@pytest.fixture(scope="session")
def digits() -> Digits:
    """The embedded digits, with 200 training images."""
    from kd.data.digits import Digits

    return Digits(test_fraction=0.25, limit=200, augment={"crop_padding": 1})


@pytest.fixture(scope="session")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of three runs with a common teacher and baseline: plain, falling temperature, DKD."""
    from composed import TINY, composed

    from kd.config.schema import check
    from kd.runs.run import run

    more = ([], ["temperature={schedule: linear, start: 9, end: 1}"], ["loss=dkd"])
    names = ("digits_kd_T2.0_a0.5_s0", "digits_kd_Tlinear-9-1_a0.5_s0", "digits_dkd_T4.0_s0")
    small = (*TINY, "pictures=true", "trainer.log_every_n_steps=1")

    def make(out: Path) -> None:
        for name, each in zip(names, more, strict=True):
            run(check(composed(*small, f"output_dir={out}", f"name={name}", *each)), "a test")

    out = once(tmp_path_factory, "three", make)
    return [next(out.glob(f"runs/*_{name}")) for name in names]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of tiny nets on the digits; read-only."""
    import torch
    from composed import TINY, composed

    from kd.config.schema import check
    from kd.runs.run import run

    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("out")
    return run(check(composed(*TINY, "name=test", f"output_dir={out}")), "python -m kd.train")


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Tiny run on photographs, with its student in every format; read-only."""
    from shipped import ship

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd.runs.run.figures_of", lambda *_: iter(()))
        return ship(tmp_path_factory.mktemp("shipped"))
