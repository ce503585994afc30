"""A strong view of each image beside the weak one."""

import json
from collections.abc import Callable
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from composed import loss_node
from torch import nn

from kd.config.schema import Config
from kd.data.digits import Digits
from kd.data.epoch_views import EpochViews
from kd.data.views import Augment, make_views, normalize
from kd.errors import UserError
from kd.nets.hooks import NetOutput
from kd.runs.run import run
from kd.training.distiller import Distiller
from kd.training.loss_spec import read_loss
from kd.training.strong_views import StrongViews, refuse_beside_strong


def test_both_nets_answer_for_the_strong_view_of_the_epoch() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    augment = Augment(crop_padding=2, brightness=0.3)
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    index = torch.tensor([3, 1, 4, 0, 9])
    asked: list[Any] = []

    def teacher(x: torch.Tensor, index: torch.Tensor, view: int) -> NetOutput:
        asked.append((x, index, view))
        return NetOutput(x.flatten(1)[:, :10])

    distiller = create_autospec(
        Distiller,
        net=net,
        normalization=((0.5,), (0.25,)),
        layout=torch.channels_last,
        current_epoch=7,
    )
    views = StrongViews(EpochViews(augment, seed=11, cycle=3), teacher)  # type: ignore[arg-type]
    views.on_train_batch_start(create_autospec(object), distiller, (pixels, index, index), 0)
    found = views.signals(distiller)
    x = make_views(pixels, index, seed=11, view=7 % 3, augment=augment)
    torch.testing.assert_close(found["strong_s"], net(normalize(x, (0.5,), (0.25,))))
    torch.testing.assert_close(found["strong_t"], x.flatten(1)[:, :10])
    assert asked[0][2] == 1


def test_stored_answers_for_strong_views_change_nothing(make_config: Callable[..., Config]) -> None:
    found = []
    for number, words in enumerate([["teacher.cache=auto"], ["teacher.cache=off"]]):
        config = make_config("loss=crld", "epochs=1", *words, "stages=[teacher,distill]")
        place = f"{config.output_dir}/{number}"
        folder = run(config.model_copy(update={"output_dir": place}), "a test")
        found.append(json.loads((folder / "report.json").read_text())["models"][-1]["test"])
    assert found[0] == found[1]


def test_what_two_views_of_an_image_cannot_be(digits: Digits) -> None:
    strong = Augment(trivial=True)
    refuse_beside_strong(None, digits)
    refuse_beside_strong(strong, digits)
    with pytest.raises(UserError, match=r"data\.augment\.mixup: found 0\.2"):
        refuse_beside_strong(strong, digits.with_augment(Augment(mixup=0.2)))
    with pytest.raises(UserError, match=r"loss\.strong\.resized_crop: found 0\.5"):
        refuse_beside_strong(Augment(resized_crop=0.5), digits)


@pytest.mark.parametrize(
    ("method", "strong", "said"),
    [
        (
            "crld",
            None,
            "found None, accepted is the augmentation of the strong view",
        ),
        ("kd", {"trivial": True}, "found {'trivial': True}, accepted is null"),
        ("crld", {"trivail": True}, "trivail: .* did you mean 'trivial'"),
    ],
)
def test_a_strong_view_is_there_where_a_loss_asks(method: str, strong: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"^loss.strong[:.] ?{said}"):
        read_loss(loss_node(method) | {"strong": strong})
