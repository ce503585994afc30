"""A run in TensorBoard, read from its event files; and the names of runs."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from composed import TINY, composed
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import (
    parse_experiment_plugin_data,
    parse_session_end_info_plugin_data,
    parse_session_start_info_plugin_data,
)
from tensorboard.util import tensor_util

from kd.config.schema import Config, check
from kd.dashboard import refresh, runs_in
from kd.reports.run_events import method
from kd.runs.run import run
from kd.training.loss_spec import read_loss

Make = Callable[..., Config]
ROW, END, COLUMNS = (
    f"_hparams_/{name}" for name in ("session_start_info", "session_end_info", "experiment")
)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(
        str(folder), size_guidance={"tensors": 0, "scalars": 0, "images": 0}
    ).Reload()


def row_of(folder: Path) -> dict[str, Any]:
    """Return a run's row in the HParams tab."""
    content = read(folder / "tensorboard").SummaryMetadata(ROW).plugin_data.content
    values = parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def text_of(events: EventAccumulator, tag: str) -> str:
    (event,) = events.Tensors(f"{tag}/text_summary")
    return str(tensor_util.make_ndarray(event.tensor_proto).item().decode())


def image_tags(folder: Path) -> set[str]:
    return set(read(folder / "tensorboard").Tags()["images"])


class TestRow:
    def test_knobs(self, three_runs: list[Path]) -> None:
        plain, falling, dkd = map(row_of, three_runs)
        assert plain == {
            "data": "digits", "train_images": 200.0, "teacher": "MLP(hidden=[16])",
            "student": "MLP(hidden=[8])",
            "method": "kd", "temperature": 2.0, "alpha": 0.5, "schedules": "none", "seed": 0.0,
            "epochs": 2.0,
            "batch_size": 50.0, "optimizer": "AdamW", "lr": plain["lr"], "lr_schedule": "onecycle",
            "teacher_epochs": 2.0,
        }  # fmt: skip
        config = yaml.safe_load((three_runs[0] / "config.yaml").read_text())
        assert plain["lr"] == config["optim"]["lr"]
        assert falling == plain | {"temperature": 9.0, "schedules": "temperature linear-9-1"}
        del plain["alpha"]  # which DKD does not use
        assert dkd == plain | {"method": "dkd", "temperature": 4.0}

    def test_results_are_the_reports(self, three_runs: list[Path]) -> None:
        for folder in three_runs:
            report = json.loads((folder / "report.json").read_text())
            teacher, baseline, student = report["models"]
            events = read(folder / "tensorboard")
            wanted = {
                "test_accuracy": student["test"]["accuracy"],
                "val_accuracy": student["val"]["best"],
                "gain": student["test"]["accuracy"] - baseline["test"]["accuracy"],
                "agreement": student["test"]["agreement"],
                "ece": student["test"]["ece"],
                "nll": student["test"]["nll"],
                "baseline_test_accuracy": baseline["test"]["accuracy"],
                "teacher_test_accuracy": teacher["test"]["accuracy"],
                "params": 64 * 8 + 8 + 8 * 10 + 10,
                "latency_ms": student["latency_ms"]["median"],
                "speedup": teacher["latency_ms"]["median"] / student["latency_ms"]["median"],
            }
            if report["comparison"]["gap_closed"] is not None:
                wanted["gap_closed"] = report["comparison"]["gap_closed"]
            found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
            assert {tag: [each.value for each in values] for tag, values in found.items()} == {
                f"result/{name}": [pytest.approx(value, rel=1e-6, abs=1e-9)]
                for name, value in wanted.items()
            }

    def test_one_row_a_run_and_the_same_columns_in_all(self, three_runs: list[Path]) -> None:
        columns = []
        for folder in three_runs:
            rows = [
                path
                for path in (folder / "tensorboard").rglob("*tfevents*")
                if b"session_start_info" in path.read_bytes()
            ]
            assert [path.parent for path in rows] == [folder / "tensorboard"]
            events = read(folder / "tensorboard")
            end = parse_session_end_info_plugin_data(
                events.SummaryMetadata(END).plugin_data.content
            )
            assert end.status == 1  # success
            columns.append(
                parse_experiment_plugin_data(events.SummaryMetadata(COLUMNS).plugin_data.content)
            )
            # 1 is a string, 3 a number
            types = {info.name: info.type for info in columns[-1].hparam_infos}
            assert {
                k: {str: 1, float: 3}[type(v)] for k, v in row_of(folder).items()
            }.items() <= types.items()
            assert {
                f"result/{k}" for k in ("test_accuracy", "val_accuracy", "gain", "agreement")
            } <= {info.name.tag for info in columns[-1].metric_infos}
        assert columns[0] == columns[1] == columns[2]
        first = {info.display_name for info in columns[0].hparam_infos if info.differs}
        # TensorBoard shows five at first
        assert first == {"alpha", "method", "seed", "student", "T"}

    def test_a_method_is_named_with_its_own_numbers(self) -> None:
        wanted = {
            ("loss=kd",): "kd",
            ("loss=kd_standardized",): "kd_standardized(standardize=True)",
            ("loss=kd_dist",): "dist + kd",
            ("loss=dkd", "loss.terms.dkd.loss.non_target_weight=2.0"): "dkd(non_target_weight=2.0)",
        }
        assert {each: method(read_loss(check(composed(*each)).loss)) for each in wanted} == wanted
        assert method(read_loss({"ce_weight": 1.0, "terms": {}})) == "labels"


class TestCharts:
    def test_no_chart_is_empty(self, three_runs: list[Path]) -> None:
        tags: dict[str, set[str]] = {}
        for folder in three_runs:
            for stage in (folder / "tensorboard").iterdir():
                if stage.is_dir():
                    tags.setdefault(stage.name, set()).update(read(stage).Tags()["scalars"])
        (event,) = read(three_runs[0] / "tensorboard").Tensors("custom_scalars__config__")
        layout = Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
        charts = {
            chart.title: chart.multiline.tag
            for category in layout.category
            for chart in category.chart
        }
        matched = {
            title: {
                stage
                for stage, own in tags.items()
                for tag in own
                if any(re.search(p, tag) for p in patterns)
            }
            for title, patterns in charts.items()
        }
        assert all(matched.values())
        assert matched["validation accuracy"] == {"teacher", "baseline", "distill"}
        assert matched["temperature"] == {"distill"}

    def test_schedules(self, three_runs: list[Path]) -> None:
        found = {}
        for folder, term in zip(three_runs, ("kd", "kd", "dkd"), strict=True):
            events = read(folder / "tensorboard" / "distill")
            found[folder] = [each.value for each in events.Scalars(f"train/{term}_temperature")]
        steps = [9 - 8 * step / 8 for step in range(8)]  # 4 steps in each of 2 epochs
        assert list(found.values()) == [[2.0] * 8, pytest.approx(steps), [4.0] * 8]
        alpha = read(three_runs[0] / "tensorboard" / "distill").Scalars("train/weight_kd")
        assert [each.value for each in alpha] == [0.5] * 8


def test_figures(three_runs: list[Path]) -> None:
    of_each = {
        "views",
        "learning_curves",
        "confusion/student",
        "reliability/student",
        "disagreement",
        "doubts",
    }
    others = {
        f"{kind}/{role}"
        for kind in ("confusion", "reliability")
        for role in ("teacher", "baseline")
    }
    assert [image_tags(folder) for folder in three_runs] == [of_each | others, of_each, of_each]
    events = read(three_runs[0] / "tensorboard")
    for tag in of_each | others:
        (picture,) = events.Images(tag)
        assert min(picture.width, picture.height) >= 300
        assert len(picture.encoded_image_string) > 5000


def test_texts(three_runs: list[Path]) -> None:
    events = read(three_runs[0] / "tensorboard")
    config = re.fullmatch(r"```yaml\n(.*)\n```", text_of(events, "config"), flags=re.DOTALL)
    assert config
    assert yaml.safe_load(config[1]) == yaml.safe_load((three_runs[0] / "config.yaml").read_text())
    assert text_of(events, "report") == (three_runs[0] / "report.md").read_text()


def test_nothing_is_logged_twice_and_little_in_all(three_runs: list[Path]) -> None:
    curves, size = [], 0
    runs = three_runs[0].parent
    assert sorted(three_runs) == sorted(runs.iterdir())
    for file in runs.rglob("*tfevents*"):
        size += file.stat().st_size
        events = read(file.parent)
        for tag in events.Tags()["scalars"]:
            steps = [each.step for each in events.Scalars(tag)]
            assert len(steps) == len(set(steps)), tag
        for tag in events.Tags()["images"]:
            assert len(events.Images(tag)) == 1
        if "val/loss" in events.Tags()["scalars"]:
            curves.append(tuple(each.value for each in events.Scalars("val/loss")))
    assert len(curves) == len(set(curves)) == 5  # a teacher, a baseline, three students
    assert size < 3 * 20e6 / 12


@pytest.mark.slow
def test_the_next_run_holds_what_went_with_a_deleted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confusions(histories: dict[str, Any], *_: object) -> Iterator[tuple[str, Figure]]:
        return ((f"confusion/{role}", Figure(figsize=(1, 1))) for role in histories)

    monkeypatch.setattr("kd.runs.run.figures_of_run", confusions)

    def again(seed: int) -> Path:
        return run(
            check(
                composed(
                    *TINY,
                    "pictures=true",
                    "name=x",
                    f"output_dir={tmp_path}",
                    f"seed={seed}",
                    "teacher.seed=0",
                )
            ),
            "",
        )

    first, second = again(0), again(1)
    assert not (second / "tensorboard" / "teacher").exists()
    assert "confusion/teacher" not in image_tags(second)
    shutil.rmtree(first)
    third = again(2)
    assert read(third / "tensorboard" / "teacher").Scalars("val/acc")
    assert {"confusion/teacher", "confusion/student"} <= image_tags(third)
    assert "confusion/baseline" in image_tags(third)


@pytest.mark.parametrize(
    ("overrides", "roles"),
    [
        (["stages=[baseline]"], {"baseline"}),
        (["stages=[teacher,distill]", "teacher.epochs=0"], {"teacher", "student"}),
    ],
    ids=["one stage", "no baseline"],
)
def test_whatever_is_missing(overrides: list[str], roles: set[str], make_config: Make) -> None:
    folder = run(make_config(*overrides, "pictures=true"), "")
    found = image_tags(folder)
    assert {tag.partition("/")[2] for tag in found if tag.startswith("confusion/")} == roles
    assert ("disagreement" in found) == (len(roles) > 1)
    row = row_of(folder)
    assert row["data"] == "digits"
    assert row["method"] == ("kd" if "student" in roles else "none")
    for stage in (folder / "tensorboard").iterdir():
        if stage.is_dir():
            assert read(stage).Scalars("val/acc")
    assert len([each for each in (folder / "tensorboard").iterdir() if each.is_dir()]) == len(roles)


class TestNames:
    def test_runs_and_jobs_by_name_without_the_store(self, tmp_path: Path) -> None:
        places = {
            "runs/20260101-000000_a_s0": "a_s0",
            "runs/20260102-000000_a_s0": "a_s0~2",
            "runs/20260103-000000_b_s0.partial": "b_s0",
            "sweeps/mine/c_s0": "c_s0",
        }
        for place in (*places, "store/0123456789abcdef", "store/0123456789abcdea.partial"):
            (tmp_path / place / "tensorboard").mkdir(parents=True)
        wanted = {
            name: (tmp_path / place / "tensorboard").resolve() for place, name in places.items()
        }
        assert runs_in(tmp_path) == wanted
        assert runs_in(tmp_path / "sweeps" / "mine") == {"c_s0": wanted["c_s0"]}
        assert runs_in(tmp_path / "sweeps" / "mine" / "c_s0") == {"c_s0": wanted["c_s0"]}

    def test_links_follow_the_runs(self, tmp_path: Path) -> None:
        for name in ("one", "two", "shown"):
            (tmp_path / name).mkdir()
        shown = tmp_path / "shown"
        refresh(shown, {"a": tmp_path / "one", "b": tmp_path / "two"})
        refresh(shown, {"a": tmp_path / "two", "c": tmp_path / "one"})
        assert {link.name: link.resolve().name for link in shown.iterdir()} == {
            "a": "two",
            "c": "one",
        }
