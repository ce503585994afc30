"""Properties of every method in conf/loss, found by glob, as training calls it: through the objective."""

import inspect
import re
import warnings
from typing import Any

import pytest
import torch
from composed import METHODS, loss_node
from torch import Tensor

import kd.losses
from kd.losses.dkd import _warn_of_two_classes, dkd_loss
from kd.nets.build import Shape
from kd.objective import Objective, read_terms

pytestmark = pytest.mark.filterwarnings("ignore:dkd. with two classes")
NODES = {name: loss_node(name) for name in METHODS}
SIZE = 8


def objective(method: str, classes: int = 10) -> Objective:
    torch.manual_seed(1)
    return Objective(NODES[method], Shape(1, SIZE, classes))


def signals(batch: int = 16, classes: int = 10, scale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        "logits_s": (scale * torch.randn(batch, classes, generator=g)).requires_grad_(),
        "logits_t": (scale * torch.randn(batch, classes, generator=g)).requires_grad_(),
        "target": torch.randint(classes, (batch,), generator=g),
        "index": torch.arange(batch),
        "x": torch.randn(batch, 1, SIZE, SIZE, generator=g),
        "epoch": 3,
        "progress": 1.0,
    }


def terms_alone(method: str, given: dict[str, Any]) -> Tensor:
    """The weighted terms, without the cross-entropy."""
    parts = objective(method, given["logits_s"].shape[1])(given)
    return parts["loss"] - parts["weight_ce"] * parts["loss_ce"]


def check_sound(method: str, given: dict[str, Any]) -> None:
    """Scalar, finite, in float32, with a finite gradient that reaches the student and never the teacher."""
    parts = objective(method, given["logits_s"].shape[1])(given)
    for name, value in parts.items():
        if name.startswith("loss"):
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert torch.isfinite(value), name
    parts["loss"].backward()
    assert torch.isfinite(given["logits_s"].grad).all()
    assert given["logits_s"].grad.any()
    assert given["logits_t"].grad is None


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_is_sound(self, method: str) -> None:
        check_sound(method, signals())

    @pytest.mark.parametrize("classes", [2, 3, 1000])
    def test_number_of_classes(self, method: str, classes: int) -> None:
        check_sound(method, signals(classes=classes))

    @pytest.mark.parametrize("batch", [1, 2])
    def test_small_batch(self, method: str, batch: int) -> None:
        check_sound(method, signals(batch=batch))

    @pytest.mark.parametrize("scale", [1e4, 1e-4])
    def test_huge_and_tiny_logits(self, method: str, scale: float) -> None:
        check_sound(method, signals(scale=scale))

    def test_all_logits_equal(self, method: str) -> None:
        given = signals()
        given["logits_s"] = torch.zeros(16, 10, requires_grad=True)
        check_sound(method, given)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_full(self, method: str, dtype: torch.dtype) -> None:
        halves = signals() | {name: signals()[name].detach().to(dtype) for name in ("logits_s", "logits_t")}
        fulls = halves | {name: halves[name].float() for name in ("logits_s", "logits_t")}
        made = objective(method)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = made(halves)["loss"]
        expected = made.ce_weight(1.0) * torch.nn.functional.cross_entropy(fulls["logits_s"], fulls["target"])
        for term in made.terms:  # called as they are, outside of autocast
            numbers = {name: schedule(1.0) for name, schedule in term.scheduled.items()}
            taken = {name: fulls[name] for name in term.signals}
            expected = expected + term.weight(1.0) * term.loss(**taken, **term.constants, **numbers)
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(expected.item(), rel=1e-6)

    def test_the_term_alone_moves_the_student(self, method: str) -> None:
        given = signals()
        terms_alone(method, given).backward()
        assert given["logits_s"].grad.abs().sum() > 1e-3

    def test_zero_at_equal_logits_where_the_docstring_says_so(self, method: str) -> None:
        docs = [documentation(term.target) for term in read_terms(NODES[method]).values()]
        claimed = all(re.search(r"\b0 where the two (agree|are equal)", doc) for doc in docs)
        given = signals(scale=3)
        given["logits_t"] = given["logits_s"].detach().clone()
        value = terms_alone(method, given).item()
        assert (abs(value) < 2e-6) == claimed, value
        if claimed:
            assert terms_alone(method, signals(scale=3)).item() > 1e-2

    def test_same_for_any_order_of_the_batch(self, method: str) -> None:
        given, order = signals(), torch.randperm(16, generator=torch.Generator().manual_seed(2))
        turned = {k: v[order] if isinstance(v, Tensor) else v for k, v in given.items()}
        a, b = objective(method)(given)["loss"], objective(method)(turned)["loss"]
        assert b.item() == pytest.approx(a.item(), rel=1e-5)

    def test_pairing_of_the_batch_matters(self, method: str) -> None:
        """Were the inputs not matched row by row, the test above would prove nothing."""
        given = signals()
        shifted = {k: v.roll(1, 0) if k != "logits_s" and isinstance(v, Tensor) else v for k, v in given.items()}
        a, b = objective(method)(given)["loss"], objective(method)(shifted)["loss"]
        assert b.item() != pytest.approx(a.item(), rel=1e-5)

    def test_soft_labels_that_are_one_hot_are_labels(self, method: str) -> None:
        given = signals()
        soft = given | {"target": torch.nn.functional.one_hot(given["target"], 10).float()}
        a, b = objective(method)(given)["loss"], objective(method)(soft)["loss"]
        assert b.item() == pytest.approx(a.item(), rel=1e-6)

    def test_soft_labels_of_mixed_images(self, method: str) -> None:
        given = signals()
        one_hot = torch.nn.functional.one_hot(given["target"], 10).float()
        check_sound(method, given | {"target": 0.7 * one_hot + 0.3 * one_hot.roll(1, 0)})

    def test_its_function_is_found_by_name(self, method: str) -> None:
        for term in read_terms(NODES[method]).values():
            module = term.target.__module__.rpartition(".")[2]
            assert callable(getattr(kd.losses, f"{module}_loss"))


def documentation(target: Any) -> str:
    """What a term's loss says of itself; a class is documented by its function."""
    name = target.__module__.rpartition(".")[2]
    return " ".join(inspect.getdoc(getattr(kd.losses, f"{name}_loss")).split())


def test_every_file_has_its_config() -> None:
    in_use = {
        term.target.__module__.rpartition(".")[2] for node in NODES.values() for term in read_terms(node).values()
    }
    assert in_use == {name.removesuffix("_loss") for name in kd.losses.__all__}


def test_every_file_names_its_paper() -> None:
    for name in kd.losses.__all__:
        assert re.search(r"\b(19|20)\d\d\b", inspect.getdoc(getattr(kd.losses, name))), name


def test_unknown_loss_is_told_with_those_there_are() -> None:
    with pytest.raises(AttributeError, match="kd_loss"):
        kd.losses.kdd_loss  # noqa: B018


def test_dkd_warns_once_of_two_classes_and_its_other_part_is_zero() -> None:
    s, t = torch.randn(5, 2), torch.randn(5, 2)
    target = torch.tensor([0, 1, 1, 0, 1])
    _warn_of_two_classes.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert dkd_loss(s, t, target, target_weight=0.0) == 0
    assert [str(each.message).startswith("dkd: with two classes") for each in caught] == [True]
