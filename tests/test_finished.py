"""Reading a finished run; and refusing folders that are none or not to be trusted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kd.errors import UserError
from kd.files.allowlist import check_allowlist
from kd.runs.reader import open_run


def edited(folder: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy a run's folder with another report, as an informed attacker would."""
    shutil.copytree(folder, to)
    report = json.loads((to / "report.json").read_text())
    change(report)
    (to / "report.json").write_text(json.dumps(report))
    return to


def test_every_net_comes_back_with_its_weights(finished: Path) -> None:
    back = open_run(finished)
    assert back.roles == ["teacher", "baseline", "student"]
    for role in back.roles:
        net = back.net(role)
        weights = load_file(back.stage(role).folder / "weights.safetensors")
        assert not net.training
        assert net.normalization  # type: ignore[truthy-bool]
        assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_the_data_comes_back_and_may_be_found_elsewhere(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert len(open_run(finished).data().split.test) == report["data"]["test"]
    assert len(open_run(finished).data(limit=100).split.train) == 100


def test_a_moved_folder_keeps_its_student(finished: Path, tmp_path: Path) -> None:
    moved = edited(
        finished,
        tmp_path / "moved",
        lambda report: report["config"].update(output_dir=str(tmp_path)),
    )
    assert open_run(moved).net("student")
    with pytest.raises(
        UserError, match=r"the weights of the teacher .* are not there; looked in no folder"
    ):
        open_run(moved).net("teacher")


def test_an_unknown_role(finished: Path) -> None:
    with pytest.raises(UserError, match=r"the run has no studnt; .* did you mean 'student'"):
        open_run(finished).stage("studnt")


def test_what_is_no_finished_run(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run: there is no folder"):
        open_run(tmp_path / "none")
    with pytest.raises(
        UserError,
        match=f"has no report.json, so it is no run's; these folders in it are: .*{finished.name}",
    ):
        open_run(finished.parent)
    partial = tmp_path / "x.partial"
    partial.mkdir()
    with pytest.raises(UserError, match="is not finished"):
        open_run(partial)
    with pytest.raises(UserError, match=r"later kd \(schema 99"):
        open_run(edited(finished, tmp_path / "later", lambda report: report.update(schema=99)))
    (tmp_path / "later" / "report.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        open_run(tmp_path / "later")


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.open", "torch.hub.load", "mine.Net", "kd.runs.run.run"]
)
def test_a_report_cannot_have_anything_built(finished: Path, tmp_path: Path, target: str) -> None:
    def plant(report: dict[str, Any]) -> None:
        report["config"]["data"] = {"_target_": target}

    with pytest.raises(
        UserError, match=r"its config names .* among the data sets in kd.data only.*trust="
    ):
        open_run(edited(finished, tmp_path / "planted", plant)).data()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "kd.nets.build.build_net",
        "kd.nets.build.torch.hub.load",
        "kd.nets.build.sys.exit",
        "kd.nets.mlp",
    ],
)
def test_only_nets_are_built_from_files(target: str) -> None:
    with pytest.raises(UserError, match="file names"):
        check_allowlist({"_target_": target}, "net", "file")
    with pytest.raises(UserError, match="file names"):  # however deep
        check_allowlist(
            {"_target_": "kd.nets.mlp.MLP", "x": [{"y": {"_target_": target}}]}, "net", "file"
        )


def test_what_is_trusted_is_built() -> None:
    check_allowlist({"_target_": "kd.nets.mlp.MLP"}, "net", "file")
    check_allowlist({"_target_": "kd.nets.timm.timm_net", "name": "resnet18"}, "net", "file")
    check_allowlist({"_target_": "mine.net.Net"}, "net", "file", trust=["mine"])
    with pytest.raises(UserError, match="minefield"):
        check_allowlist({"_target_": "minefield.Net"}, "net", "file", trust=["mine"])
