"""Schedules: shapes, ranges, and reading from the config."""

import math
import pickle
from typing import Any

import pytest
from composed import composed

from kd.config.schedules import (
    POSITIVE,
    SHARE,
    cosine,
    is_schedule,
    linear,
    make_schedule,
    step,
    warmup,
)
from kd.config.schema import check
from kd.errors import UserError


def zigzag(progress: float, height: float) -> float:
    """A schedule of the user's own."""
    return height * abs(math.sin(9 * progress))


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (3, {0: 3, 0.4: 3, 1: 3}),
        ({"schedule": "constant", "value": 0.5}, {0: 0.5, 1: 0.5}),
        ({"schedule": "linear", "start": 8, "end": 2}, {0: 8, 0.25: 6.5, 0.5: 5, 1: 2}),
        (
            {"schedule": "linear", "start": 0, "end": 2, "over": 0.5},
            {0: 0, 0.25: 1, 0.5: 2, 0.75: 2, 1: 2},
        ),
        (
            {"schedule": "cosine", "start": 8, "end": 2},
            {0: 8, 1 / 3: 6.5, 0.5: 5, 2 / 3: 3.5, 1: 2},
        ),
        (
            {"schedule": "cosine", "start": 0, "end": 1, "over": 0.2},
            {0: 0, 0.1: 0.5, 0.2: 1, 0.9: 1},
        ),
        (
            {"schedule": "cosine", "start": 6, "end": 2, "after": 0.6},
            {0: 6, 0.6: 6, 0.8: 4, 1: 2},
        ),
        (
            {"schedule": "step", "start": 0.9, "end": 0, "at": 0.8},
            {0: 0.9, 0.79: 0.9, 0.8: 0, 1: 0},
        ),
        ({"schedule": "warmup", "end": 4, "over": 0.25}, {0: 0, 0.125: 2, 0.25: 4, 1: 4}),
        (
            {"schedule": "one_minus", "of": {"schedule": "linear", "start": 1, "end": 0.2}},
            {0: 0, 0.5: 0.4, 1: 0.8},
        ),
        ({"_target_": "test_schedules.zigzag", "height": 2.0}, {0: 0, 0.5: 2 * math.sin(4.5) * -1}),
    ],
)
def test_values(node: Any, expected: dict[float, float]) -> None:
    schedule = make_schedule(node, "temperature")
    for progress, value in expected.items():
        assert schedule(progress) == pytest.approx(value), progress
    # Several processes train with it
    assert pickle.loads(pickle.dumps(schedule))(0.5) == schedule(0.5)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("warm", "x: found 'warm', accepted is a finite number, or a schedule of such"),
        (True, "x: found True"),
        (None, "x: found None"),
        (float("nan"), "x: found nan"),
        (
            {"schedule": "linaer", "start": 1, "end": 2},
            "x.schedule: found 'linaer'.*did you mean 'linear'",
        ),
        ({"schedule": "POSITIVE"}, "x.schedule: found 'POSITIVE', accepted are constant, linear"),
        (
            {"schedule": "linear", "start": 1, "ende": 2},
            "x.ende: no such parameter.*did you mean 'end'",
        ),
        ({"schedule": "linear", "start": 1}, "x: end must be given"),
        (
            {"schedule": "linear", "start": 1, "end": "two"},
            "x.end: found 'two'; input should be a valid number",
        ),
        ({"schedule": "linear", "start": 1, "end": 2, "over": 0}, "x: over: found 0, accepted"),
        ({"schedule": "step", "start": 1, "end": 2, "at": 2}, "x: at: found 2, accepted"),
        ({"start": 1, "end": 2}, "x: found .*accepted is a number, or a schedule"),
        ({"_target_": "math.sqrt"}, "x: found .*accepted is a number, or a schedule"),
    ],
)
def test_refused(node: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_schedule(node, "x")


def test_range_holds_at_both_ends_and_between() -> None:
    for start, end in ((1.2, 0.5), (0.5, 1.2), (-0.1, 0.5)):
        with pytest.raises(
            UserError, match=r"alpha: it is .* at progress .*; accepted is a number from 0 to 1"
        ):
            make_schedule({"schedule": "linear", "start": start, "end": end}, "alpha", SHARE)
    with pytest.raises(UserError, match="progress"):
        make_schedule({"_target_": "test_schedules.zigzag", "height": 1.5}, "alpha", SHARE)
    with pytest.raises(UserError, match=r"it is 0 at progress 1\b"):
        make_schedule({"schedule": "linear", "start": 4, "end": 0}, "temperature", POSITIVE)


def test_what_is_a_schedule() -> None:
    assert is_schedule({"schedule": "anything"})
    assert is_schedule({"_target_": "test_schedules.zigzag"})
    assert not is_schedule({"_target_": "kd.nets.mlp.MLP", "hidden": [8]})
    assert not is_schedule({"start": 1})
    assert not is_schedule(4.0)


def test_direct_calls() -> None:
    values = [linear(0.5, 0, 1), cosine(0.5, 0, 1), step(0.5, 0, 0.5, 0.5), warmup(0.05, 1)]
    assert values == pytest.approx([0.5] * 4)
    with pytest.raises(ValueError, match="over"):
        cosine(0.5, 0, 1, over=1.5)
    with pytest.raises(ValueError, match="after: found 1"):
        cosine(0.5, 0, 1, after=1)


class TestFromTheCommandLine:
    def test_temperature(self) -> None:
        config = check(
            composed("temperature={schedule: linear, start: 8, end: 2}"), ["temperature"]
        )
        node = {"schedule": "linear", "start": 8, "end": 2}
        assert config.loss["terms"]["kd"]["loss"]["temperature"] == node
        assert config.name == "digits_mlp_to_mlp_kd_Tlinear-8-2_a0.5_s0"

    def test_alpha_moves_both_sides(self) -> None:
        config = check(composed("alpha={schedule: linear, start: 1, end: 0.2}"), ["alpha"])
        teachers = make_schedule(config.loss["terms"]["kd"]["weight"], "weight")
        labels = make_schedule(config.loss["ce_weight"], "ce_weight")
        for progress in (0, 0.3, 1):
            assert teachers(progress) == pytest.approx(1 - 0.8 * progress)
            assert labels(progress) == pytest.approx(0.8 * progress)
        assert config.name == "digits_mlp_to_mlp_kd_T2.0_alinear-1-0.2_s0"

    @pytest.mark.slow
    def test_a_function_of_ones_own(self) -> None:
        config = check(composed("temperature={_target_: own_schedule.rise, low: 2.0}"))
        assert config.name == "digits_mlp_to_mlp_kd_Trise-2.0_a0.5_s0"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("alpha=1.5", "alpha: found 1.5, accepted is a number from 0 to 1"),
            ("alpha=x", "alpha: found 'x', accepted is a number from 0 to 1"),
            ("alpha={schedule: linear, start: 1.2, end: 0}", "alpha: it is 1.2 at progress 0;"),
            (
                "alpha={schedule: linear, start: 1, end: -1}",
                "alpha: it is .* at progress .*; accepted is",
            ),
            ("temperature=0", "temperature: found 0.0, accepted is a number above 0"),
            (
                "temperature={schedule: cosine, start: 4, end: 0}",
                "temperature: it is 0 at progress 1;",
            ),
            (
                "temperature={schedule: cosin, start: 4, end: 1}",
                "temperature.schedule: found 'cosin'",
            ),
        ],
    )
    def test_refused(self, override: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            check(composed(override))

    @pytest.mark.slow
    def test_an_int_and_a_float_are_one_setting(self) -> None:
        assert (
            check(composed("temperature=4")).model_dump()
            == check(composed("temperature=4.0")).model_dump()
        )


class TestRecipes:
    def test_temperature_falls(self) -> None:
        loss = check(composed("experiment=temperature_falls")).loss
        temperature = make_schedule(loss["terms"]["kd"]["loss"]["temperature"], "temperature")
        values = [temperature(i / 10) for i in range(11)]
        assert (values[0], values[-1]) == (8, 2)
        assert values == sorted(values, reverse=True)

    def test_labels_later(self) -> None:
        loss = check(composed("experiment=labels_later")).loss
        labels = make_schedule(loss["ce_weight"], "ce_weight")
        assert (labels(0), labels(1)) == (0, pytest.approx(0.9))

    def test_distill_then_labels(self) -> None:
        loss = check(composed("experiment=distill_then_labels")).loss
        teachers, labels = (
            make_schedule(n, "n") for n in (loss["terms"]["kd"]["weight"], loss["ce_weight"])
        )
        assert (teachers(0.79), labels(0.79)) == (0.9, pytest.approx(0.1))
        assert (teachers(0.8), labels(0.8)) == (0, 1)

    def test_finetune(self) -> None:
        assert check(composed("experiment=finetune")).stages[-2:] == ["distill", "finetune"]
