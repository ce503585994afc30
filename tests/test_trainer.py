"""Options of Lightning's Trainer: each is accepted, or refused with a message that says what to
set.
"""

import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
from commands import exit_code
from composed import CONF, TINY
from omegaconf import OmegaConf

from kd.config.trainer import INSTEAD, Options

# Every option of the Trainer, and whether `trainer.OPTION=VALUE` is accepted, or words of the
# refusal.
TABLE: dict[str, list[tuple[str, str | None]]] = {
    "accelerator": [("cpu", None), ("tpuu", "tpuu")],
    "strategy": [
        ("auto", None),
        ("dpp", "found 'dpp'; accepted are auto, ddp, "),
    ],
    "devices": [
        ("1", None),
        ("auto", None),
        ("0", "found 0; accepted is a whole number"),
        ("x", "'x'"),
    ],
    "num_nodes": [("1", None), ("0", "found 0; accepted is a whole number from 1")],
    "precision": [("bf16-mixed", None), ("64-true", "accepted are auto, 32-true, bf16-mixed")],
    "max_epochs": [("1", None), ("0", "found 0; accepted is a whole number from 1")],
    "min_epochs": [("1", None), ("-1", "found -1")],
    "max_steps": [("3", None), ("0", "found 0; accepted is a whole number from 1, or -1")],
    "min_steps": [("2", None), ("1.5", "found 1.5")],
    "max_time": [
        ("'00:00:01:00'", None),
        ("{minutes: 1}", None),
        ("'00:00:00:00'", "days:hours:minutes:seconds"),
        ("tomorrow", "days:hours:minutes:seconds"),
    ],
    "limit_train_batches": [
        ("2", None),
        ("0.5", None),
        ("0", "found 0; accepted is a number of batches from 1"),
        ("0.0001", "less than one of 4 batches; accepted are numbers of batches from 1, or shares"),
    ],
    "limit_val_batches": [("1", None), ("1.5", "found 1.5"), ("0.0001", "less than one of")],
    "limit_test_batches": [("1", None), ("0", "found 0")],
    "log_every_n_steps": [("1", None), ("x", "'x'")],
    "enable_progress_bar": [("false", None), ("maybe", "'maybe'")],
    "accumulate_grad_batches": [("2", None), ("0", "found 0")],
    "gradient_clip_algorithm": [("value", None), ("median", "'median'")],
    "deterministic": [("warn", None), ("maybe", "'maybe'")],
    "benchmark": [("true", None)],
    "inference_mode": [("false", None)],
    "profiler": [("simple", None), ("fast", "'fast'")],
    "detect_anomaly": [("true", None)],
    "sync_batchnorm": [("false", None), ("true", "between GPUs alone")],
    "logger": [("true", "set logger=tensorboard")],
    "callbacks": [("[]", "early_stopping")],
    "plugins": [("[]", "precision and strategy")],
    "default_root_dir": [("x", "output_dir")],
    "enable_checkpointing": [("false", "checkpoints")],
    "enable_model_summary": [("true", "report.md")],
    "num_sanity_val_steps": [("2", "tried out")],
    "use_distributed_sampler": [("true", "shares the images out")],
    "gradient_clip_val": [("1.0", "set gradient_clip")],
    "fast_dev_run": [("true", "trainer=smoke")],
    "barebones": [("true", "checkpoint")],
    "check_val_every_n_epoch": [("2", "each epoch")],
    "val_check_interval": [("0.5", "each epoch")],
    "overfit_batches": [("1", "data.limit=N")],
    "limit_predict_batches": [("1", "kd.predict")],
    "reload_dataloaders_every_n_epochs": [("1", "data.views")],
    "enable_autolog_hparams": [("false", "config.yaml")],
    "model_registry": [("x", "student.safetensors")],
}
SMALL = ("model=mlp_to_mlp", *TINY, "stages=[baseline]")


def test_every_option_of_the_trainer_is_in_the_table_and_in_the_config() -> None:
    known = set(inspect.signature(L.Trainer).parameters)
    assert set(TABLE) == known
    ours = set(Options.model_fields) - {"compile"}  # which is kd's own
    assert ours | set(INSTEAD) == known
    assert set(OmegaConf.load(CONF / "trainer" / "auto.yaml")) == set(Options.model_fields)
    taken = {name for name, cases in TABLE.items() if any(words is None for _, words in cases)}
    assert taken == ours


REFUSED = [(name, *case) for name, cases in TABLE.items() for case in cases if case[1]]


@pytest.mark.parametrize(
    ("name", "value", "words"), REFUSED, ids=[f"{a}={b}" for a, b, _ in REFUSED]
)
def test_the_others_are_refused_in_one_message(
    name: str,
    value: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_training(*_: object) -> None:
        raise AssertionError("nothing may be trained")

    monkeypatch.setattr("kd.stages.complete._train", no_training)
    out = f"output_dir={tmp_path}"
    assert exit_code("train", *SMALL, out, f"trainer.{name}={value}") == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("kd: trainer")
    assert words in " ".join(said)
    assert len(said) <= 3
    if name in ("max_epochs", "logger"):  # as if it were an option of its own
        assert exit_code("train", *SMALL, out, f"+trainer.{name}={value}") == 2


def test_what_is_taken_trains(make_config: Callable[..., Any], tmp_path: Path) -> None:
    """All at once, except those that end a training early, which are tried alone."""
    alone = {"max_steps", "max_time", "min_epochs", "min_steps"}
    values = {name: value for name, cases in TABLE.items() for value, words in cases if not words}
    together = [f"trainer.{name}={value}" for name, value in values.items() if name not in alone]
    for number, words in enumerate(
        (
            together,
            ["trainer.max_steps=3"],
            ["trainer.max_time={minutes: 1}", "trainer.min_steps=2"],
        )
    ):
        out = tmp_path / str(number)
        assert exit_code("train", *SMALL, f"output_dir={out}", "gradient_clip=1.0", *words) == 0
        (record,) = [json.loads(path.read_text()) for path in out.glob("store/*/stage.json")]
        profile = list(out.glob("store/*/fit-profile.txt"))
        # 4 batches of 50 of 200 images; 2 per epoch make a step of 2 batches; 3 steps end in the
        # first epoch.
        steps, epochs = [(1, 1), (3, 1), (8, 2)][number]
        assert (record["steps"], record["epochs"]) == (steps, epochs)
        assert bool(profile) == (number == 0)
        assert "val/acc" in record["history"][-1]
    logging.getLogger("lightning.pytorch").setLevel(logging.NOTSET)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_a_run_of_one_process_writes_its_curves_whatever_these_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From these Lightning guesses that this process is one of many, and not the one that
    writes.
    """
    from lightning_utilities.core.rank_zero import rank_zero_only

    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as it is when Lightning is imported
    assert exit_code("train", *SMALL, f"output_dir={tmp_path}", "trainer.max_epochs=1") == 0
    assert len(list(tmp_path.glob("runs/*/tensorboard/baseline/*tfevents*"))) == 1
    assert rank_zero_only.rank == 0


def test_one_image_a_batch_and_batch_norm_over_one_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MobileNet's last maps are 1x1 at 32 pixels, and the digits are smaller."""
    net = ("student=torchvision", "student.net.name=mobilenet_v2", "stages=[baseline]")
    words = ("data.limit=200", "batch_size=1", *net, f"output_dir={tmp_path}")
    assert exit_code("train", *words) == 2
    said = capsys.readouterr().err
    assert "kd: batch_size: found 1; this net has batch norm where its maps are 1 by 1" in said
    assert "Traceback" not in said
