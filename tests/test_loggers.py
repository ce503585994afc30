"""Loggers of the stages: what they are named, what they leave, and what is refused."""

import csv
import re
import shutil
import time
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers.wandb
import pytest
from composed import composed, plan, tiny

from kd.config.construct import construct
from kd.config.schema import check
from kd.errors import UserError
from kd.runs.job import Job
from kd.runs.run import run
from kd.stages.stage import logger_nodes, make_stage
from kd.training.loggers import check_loggers, make_loggers

ALL = "logger=[tensorboard,csv,wandb,mlflow]"


def test_a_logger_is_told_run_stage_and_output(tmp_path: Path) -> None:
    config = check(composed(ALL, f"output_dir={tmp_path}", "name=mine"))
    nodes = logger_nodes(config, "distill")
    assert list(nodes) == ["tensorboard", "csv", "wandb", "mlflow"]
    assert (nodes["wandb"]["group"], nodes["wandb"]["name"]) == ("mine", "distill")
    assert nodes["wandb"]["save_dir"] == str(tmp_path)
    assert nodes["mlflow"]["run_name"] == "mine/distill"
    assert nodes["mlflow"]["tags"] == {"kd.run": "mine", "kd.stage": "distill"}
    assert nodes["mlflow"]["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert nodes["csv"]["save_dir"] == "{folder}"


@pytest.mark.slow
def test_tensorboard_is_the_default_and_loggers_are_in_no_key(tmp_path: Path) -> None:
    keys = set()
    for words in ([], [ALL], ["logger=csv", "logger.csv.name=other"]):
        config = check(composed(f"output_dir={tmp_path}", "data.limit=200", *words))
        data = construct(config.data, "data")
        job = Job((), "", config, tmp_path, "")
        keys.add((make_stage(plan(config, "teacher"), config, data, {}).key, job.key))
        assert words or list(config.logger) == ["tensorboard"]
    assert len(keys) == 1


@pytest.mark.slow
def test_a_package_that_is_not_installed_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning.pytorch.loggers.wandb, "_WANDB_AVAILABLE", False)
    with pytest.raises(
        UserError, match=r"^logger.wandb: wandb is not .*: pip install 'kd\[wandb\]'$"
    ):
        check_loggers(logger_nodes(check(composed("logger=wandb")), "teacher"))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dri": "x"}, "own.save_dri"),
        ({"_target_": "kd.nets.mlp.MLP", "num_classes": 2, "in_channels": 1, "image_size": 8},
         "MLP is no logger"),
    ],
)  # fmt: skip
def test_what_is_no_logger_is_refused(node: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_loggers({"own": node})


def test_a_logger_that_fails_in_the_middle_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    node = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "{folder}", "name": "x"}
    (logger,) = make_loggers({"own": node}, tmp_path)

    def log(step: int) -> None:
        logger.log_metrics({"loss": 0.5}, step=step)
        logger.save()

    log(0)
    shutil.move(tmp_path / "x", tmp_path / "y")  # a share that has gone
    (tmp_path / "x").touch()
    for step in (1, 2):
        log(step)
    said = capsys.readouterr().err
    assert said.count("logger.own: ") == 1
    assert "Not a directory" in said or "No such file" in said
    assert "the training goes on" in said
    (tmp_path / "x").unlink()
    shutil.move(tmp_path / "y", tmp_path / "x")
    for step, later in ((3, 59.0), (4, 61.0)):
        now = 1000.0 + later
        log(step)
    logger.finalize("success")
    with (tmp_path / "x" / "version_0" / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    assert "3" not in steps, "it is left alone for a minute"
    assert {"0", "4"} <= {*steps}, "and tried again after it"


@pytest.mark.slow  # 8 s of computing, most of it MLflow's and W&B's imports
def test_each_stage_is_a_run_of_every_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the packages themselves, W&B offline and MLflow in a file."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = check(tiny(tmp_path, ALL, "trainer=smoke", "name=mine"))
    folder = run(config, "")
    from mlflow.tracking import MlflowClient

    stages = ["teacher", "baseline", "distill"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("kd")
    assert experiment is not None
    found = {
        each.data.tags["kd.stage"]: each for each in client.search_runs([experiment.experiment_id])
    }
    assert sorted(found) == sorted([*stages, "report"])
    assert {each.data.tags["kd.run"] for each in found.values()} == {"mine"}
    assert {each.info.status for each in found.values()} == {"FINISHED"}
    for stage in stages:
        assert list((folder / "tensorboard" / stage).glob("*tfevents*"))
        with (folder / "csv" / stage / "version_0" / "metrics.csv").open() as file:
            rows = [row["val/acc"] for row in csv.DictReader(file) if row.get("val/acc")]
        assert found[stage].data.metrics["val/acc"] == pytest.approx(float(rows[-1]))
    with (folder / "csv" / "report" / "version_0" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    test = found["report"].data.metrics["student/test/accuracy"]
    assert test == pytest.approx(float(row["student/test/accuracy"]))
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == len(stages) + 1
    # A second attempt goes on in the same run
    store = next(each for each in (tmp_path / "store").glob("*/logger_ids.json"))
    nodes = {"mlflow": logger_nodes(config, "x")["mlflow"]}
    (again,) = make_loggers(nodes, store.parent)
    assert again.version in {each.info.run_id for each in found.values()}
