"""NaN and infinite losses: where they are noticed, what is said, and what is kept."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import TINY, composed
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from kd.config.schema import Config, check
from kd.errors import DivergedError, UserError
from kd.nets.mlp import MLP
from kd.runs.run import run
from kd.train import start
from kd.training.finite import check_row, finite

Make = Callable[..., Config]
STEPS = 200 // 50  # of an epoch of `TINY`

bad_from = math.inf
seen = 0


def going_bad_loss(logits_s: Tensor) -> Tensor:
    """A loss that is 0, and NaN from some step on."""
    global seen
    seen += 1
    return logits_s.sum() * (math.nan if seen > bad_from else 0.0)


class Somewhere:
    """The part of a Trainer that says where a training is."""

    global_step, current_epoch = 6, 1
    optimizers = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.25),)


@pytest.mark.slow
def test_it_ends_at_that_step_and_goes_on_from_the_last_good_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(folder: str) -> Config:
        term = "+loss.terms.bad={weight: 1.0, loss: {_target_: test_finite.going_bad_loss}}"
        out = f"output_dir={tmp_path / folder}"
        return check(
            composed(
                *TINY, "epochs=3", "stages=[teacher,distill]", "lr_schedule=constant", term, out
            )
        )

    monkeypatch.setattr(f"{__name__}.seen", 0)
    whole = run(config("whole"), "")
    tried = seen - 3 * STEPS  # before training, to see that it can be called
    assert tried >= 0

    monkeypatch.setattr(f"{__name__}.seen", 0)
    monkeypatch.setattr(f"{__name__}.bad_from", tried + STEPS + 2)
    said = (
        f"^distill: the loss is nan at step {STEPS + 3}, in epoch 2: bad is nan; "
        r"learning rate 0\.\d+; a lower"
    )
    with pytest.raises(DivergedError, match=said):
        run(config("cut"), "")
    (kept,) = (tmp_path / "cut" / "store").glob("*.partial/last.ckpt")
    assert torch.load(kept, weights_only=True)["global_step"] == STEPS

    monkeypatch.setattr(f"{__name__}.bad_from", math.inf)
    again = run(config("cut"), "")
    one, two = (load_file(folder / "student.safetensors") for folder in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_terms_to_blame_are_named() -> None:
    parts = {
        "loss": torch.tensor(math.inf),
        "loss_ce": torch.tensor(1.0),
        "loss_kd": torch.tensor(math.inf),
    }
    where = r"the loss is inf at step 7, in epoch 2: "
    with pytest.raises(DivergedError, match=where + r"kd is inf; learning rate 0\.25$"):
        finite(parts, Somewhere())
    with pytest.raises(DivergedError, match=where + "all its terms together"):
        finite({**parts, "loss_kd": torch.tensor(3e38)}, Somewhere())
    assert finite({"loss": torch.tensor(2.0)}, Somewhere()) == 2.0


def test_a_device_is_not_waited_for_at_each_step() -> None:
    elsewhere = {"loss": torch.zeros((), device="meta")}  # which cannot be looked at
    assert finite(elsewhere, Somewhere(), look=False) is elsewhere["loss"]
    bad = {"loss": torch.tensor(math.nan)}
    with pytest.raises(DivergedError):
        finite(bad, Somewhere(), look=False)  # a CPU has no need to wait


@pytest.mark.parametrize("name", ["train/loss", "val/loss"])
def test_weights_of_an_epoch_that_ended_badly_are_not_kept(name: str) -> None:
    row = {"epoch": 2, "train/loss": 1.0, "val/loss": 1.0, "lr": 0.5}
    check_row(row)
    with pytest.raises(DivergedError, match=f"^{name} is nan after epoch 3; learning rate 0.5$"):
        check_row({**row, name: math.nan})


@pytest.mark.slow
def test_the_last_step_of_an_epoch_breaks_the_net(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step's loss is finite, the validation loss is not."""
    forward = MLP.forward

    def broken(self: MLP, x: Tensor) -> Tensor:
        return forward(self, x) if self.training else forward(self, x) * math.nan

    monkeypatch.setattr(MLP, "forward", broken)
    config = make_config("stages=[baseline]")
    with pytest.raises(
        DivergedError, match=r"^baseline: val/loss is nan after epoch 1; learning rate "
    ):
        run(config, "")
    assert not list((Path(config.output_dir) / "store").glob("*/last.ckpt"))


@pytest.mark.slow
def test_a_diverging_run_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "model=mlp_to_mlp",
        *TINY,
        "stages=[baseline]",
        "optim=sgd",
        "optim.lr=1e20",
        "lr_schedule=constant",
    ]
    monkeypatch.setattr("sys.argv", ["kd.train", *words, f"output_dir={tmp_path}"])
    with pytest.raises(SystemExit) as end:
        start()
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert said[-1].startswith(
        "kd: baseline: the loss is nan at step 2, in epoch 1: ce is nan; learning rate 1e+20;"
    )
    assert not any("Traceback" in line or "Warning" in line for line in said)


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_refused(make_config: Make, tmp_path: Path) -> None:
    state: dict[str, Any] = MLP(10, 1, 8, [16]).state_dict()
    state["fc.weight"][3, 5] = math.nan
    torch.save(state, tmp_path / "teacher.pth")
    with pytest.raises(
        UserError,
        match=r"teacher\.path: the weights in .*teacher.pth are not all finite .*fc\.weight",
    ):
        run(make_config(f"teacher.path={tmp_path / 'teacher.pth'}"), "")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kd_standardized", "dist"])
def test_images_that_are_all_one_colour(loss: str, make_config: Make, tmp_path: Path) -> None:
    """Constant channels and equal outputs for all images: nothing has a variance to divide by."""
    for name in ("a", "b"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        for i in range(20):
            Image.new("L", (8, 8), 77).save(tmp_path / "flat" / name / f"{i}.png")
    data = (
        "data=image_folder",
        f"data.root={tmp_path / 'flat'}",
        "data.image_size=8",
        "data.channels=1",
    )
    small = (
        "batch_size=8",
        "teacher.batch_size=8",
        "epochs=1",
        "teacher.epochs=1",
        "data.limit=null",
    )
    folder = run(make_config(*data, *small, f"loss={loss}"), "")
    report = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["comparison"]["gap_closed"] is None
    assert report["comparison"]["p_value"] == 1.0
    assert [model["test"]["auroc"] for model in report["models"]] == [0.5] * 3
