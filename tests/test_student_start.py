"""A student that starts from a file or a run, or trains only its last layer; and its baseline."""

import json
from pathlib import Path

import pytest
import torch
from composed import tiny
from safetensors.torch import load_file
from torch import Tensor

from kd.config.schema import Config, check
from kd.errors import UserError
from kd.nets.mlp import MLP
from kd.runs.run import run
from kd.stages.chain import chain_of

HIDDEN = ("student.net.hidden=[8]", "teacher.net.hidden=[16]")


def saved(tmp_path: Path, classes: int = 10) -> dict[str, Tensor]:
    torch.manual_seed(5)
    state = MLP(classes, 1, 8, [8]).state_dict()
    torch.save({"backbone": state}, tmp_path / "a.pt")
    return state


def config(tmp_path: Path, *overrides: str) -> Config:
    return check(tiny(tmp_path, *HIDDEN, "epochs=1", "teacher.epochs=1", *overrides))


def weights(folder: Path, *roles: str) -> list[dict[str, Tensor]]:
    report = json.loads((folder / "report.json").read_text())
    keys = {model["role"]: model["stage"] for model in report["models"]}
    return [
        load_file(folder.parents[1] / "store" / keys[role] / "weights.safetensors")
        for role in roles
    ]


def test_student_and_baseline_start_from_the_same_file(tmp_path: Path) -> None:
    state = saved(tmp_path)
    folder = run(config(tmp_path, f"student.path={tmp_path / 'a.pt'}", "epochs=0"), "")
    for found in weights(folder, "student", "baseline"):
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_the_last_layer_alone_is_trained(tmp_path: Path) -> None:
    state = saved(tmp_path, 7)  # its last layer is for other classes, so it starts afresh
    path = f"student.path={tmp_path / 'a.pt'}"
    folder = run(config(tmp_path, path, "student.finetune=head"), "")
    one, two = weights(folder, "student", "baseline")
    for name in ("hidden.0.weight", "hidden.0.bias"):
        assert torch.equal(one[name], state[name])
        assert torch.equal(two[name], state[name])
    assert not torch.equal(one["fc.weight"], two["fc.weight"])


def test_a_run_s_student_goes_on_and_names_its_net(tmp_path: Path) -> None:
    first = run(config(tmp_path, "stages=[baseline,distill]", "loss=label_smoothing"), "")
    found = check(
        tiny(
            tmp_path,
            "student=checkpoint",
            f"student.path={first}",
            "epochs=0",
            "stages=[baseline,distill]",
            "loss=label_smoothing",
        )
    )
    assert found.student.net == {"_target_": "kd.nets.mlp.MLP", "hidden": [8]}
    (one,), (two,) = weights(first, "student"), weights(run(found, ""), "student")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["student.path=nowhere.pt"], ["student.path: there is no file"]),
        (["student.state=ema"], ["student.state: found 'ema'", "student.path is not set"]),
        (["student.finetune=none"], ["student.finetune", "'all', 'head' or 'frozen_norms'"]),
        (["student.match=order"], ["student.match: found 'order'", "student.path is not set"]),
        (["student.finetune=frozen_norms"], ["student.finetune", "MLP has no batch norms"]),
        (["student=checkpoint"], ["student.path: found None, needed is the file"]),
        (["student.path=a.pt", "loss=simkd"], ["student.path", "net of its own"]),
    ],
)
def test_what_cannot_start_is_refused(
    overrides: list[str], words: list[str], tmp_path: Path
) -> None:
    given = [] if "student=checkpoint" in overrides else [*HIDDEN]
    with pytest.raises(UserError) as error:
        run(check(tiny(tmp_path, *given, *overrides)), "")
    assert all(word in str(error.value) for word in words)


def test_a_file_that_does_not_fit_is_refused_before_the_teacher_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"hidden.0.weight": torch.zeros(3, 64)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"student.path: the weights in .*a.pt do not fit the net"):
        run(config(tmp_path, f"student.path={tmp_path / 'a.pt'}"), "")
    assert "training for" not in capsys.readouterr().err


def test_a_later_stage_goes_on_from_the_earlier_one(tmp_path: Path) -> None:
    path = f"student.path={tmp_path / 'a.pt'}"
    chain = chain_of(config(tmp_path, path, "student.finetune=head", "experiment=finetune"))
    by_name = {plan.name: plan for plan in chain}
    assert by_name["teacher"].path is None
    assert [by_name[name].path for name in ("baseline", "distill")] == [str(tmp_path / "a.pt")] * 2
    assert by_name["finetune"].path is None
    assert {by_name[n].trains for n in ("baseline", "distill", "finetune")} == {"head"}
