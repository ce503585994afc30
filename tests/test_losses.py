"""Properties of every method in conf/loss, found by glob, through the objective as in training."""

import inspect
import re
import warnings
from typing import Any

import pytest
import torch
from composed import CONF, METHODS, composed, loss_node
from omegaconf import OmegaConf
from torch import Tensor, nn

import kd.losses
from kd.losses.dkd import _warn_of_two_classes, dkd_loss
from kd.shape import Shape
from kd.training.loss_spec import read_loss
from kd.training.objective import Objective

pytestmark = pytest.mark.filterwarnings("ignore:dkd. with two classes")
SIZE = 8
SHAPES = ((6, 4, 4), (8, 2, 2))  # of the taps, of both nets
WIDTH = 8
PROGRESS = 0.5  # when terms that rise are there, and those that fade still are
STUDENT = ("logits_s", "strong_s", "feats_s", "preacts_s", "pooled_s", "maps_s")
TEACHER = ("logits_t", "strong_t", "feats_t", "preacts_t", "pooled_t", "maps_t")


def objective(method: str, classes: int = 10) -> Objective:
    torch.manual_seed(1)
    labels = torch.arange(20) % min(classes, 4)
    build_arguments = {
        "shapes_s": SHAPES,
        "shapes_t": SHAPES,
        "batch_size": 16,
        "width_s": WIDTH,
        "width_t": WIDTH,
        "labels": labels,
    }
    return Objective(
        read_loss(loss_node(method)), Shape(1, SIZE, classes), build_arguments=build_arguments
    )


def features(batch: int, scale: float, g: torch.Generator) -> dict[str, Any]:
    """Signals of a net with two hooked layers: maps before and after ReLU, and an embedding."""
    preacts = [
        (scale * torch.randn(batch, *shape, generator=g)).requires_grad_() for shape in SHAPES
    ]
    feats = [p.detach().relu().requires_grad_() for p in preacts]
    pooled = (scale * torch.randn(batch, WIDTH, generator=g).abs()).requires_grad_()
    maps = (scale * torch.randn(batch, WIDTH, 4, 4, generator=g).abs()).requires_grad_()
    return {"feats": feats, "preacts": preacts, "pooled": pooled, "maps": maps}


def leaves(given: dict[str, Any], names: tuple[str, ...]) -> list[Tensor]:
    """The tensors of these signals."""
    return [
        t
        for name in names
        for t in (given[name] if isinstance(given[name], list) else [given[name]])
    ]


def at_once(change: Any, value: Any) -> Any:
    """Apply a change to a tensor, or to a list of them."""
    if isinstance(value, list):
        return [change(each) for each in value]
    return change(value) if isinstance(value, Tensor) else value


def signals(
    batch: int = 16, classes: int = 10, scale: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = nn.Linear(WIDTH, classes).requires_grad_(False)
    sides = {f"{k}_{side}": v for side in "st" for k, v in features(batch, scale, g).items()}
    return sides | {
        "head_s": nn.Linear(WIDTH, classes),
        "head_t": head,
        "logits_s": (scale * torch.randn(batch, classes, generator=g)).requires_grad_(),
        "logits_t": (scale * torch.randn(batch, classes, generator=g)).requires_grad_(),
        "strong_s": (scale * torch.randn(batch, classes, generator=g)).requires_grad_(),
        "strong_t": (scale * torch.randn(batch, classes, generator=g)).requires_grad_(),
        "target": torch.randint(classes, (batch,), generator=g),
        "index": torch.arange(batch),
        "x": torch.randn(batch, 1, SIZE, SIZE, generator=g),
        "epoch": 3,
        "progress": PROGRESS,
    }


def terms_alone(method: str, given: dict[str, Any]) -> Tensor:
    """Return the sum of the weighted terms, without cross-entropy."""
    parts = objective(method, given["logits_s"].shape[1])(given)
    return parts["loss"] - parts["weight_ce"] * parts["loss_ce"]


def check_sound(method: str, given: dict[str, Any], moves: bool = True) -> None:
    """Check for a finite float32 scalar whose finite gradient reaches the student, never the
    teacher.

    Args:
        moves: whether the gradient is not 0.
    """
    parts = objective(method, given["logits_s"].shape[1])(given)
    for name, value in parts.items():
        if name.startswith("loss"):
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert torch.isfinite(value), name
    parts["loss"].backward()
    slopes = [leaf.grad for leaf in leaves(given, STUDENT) if leaf.grad is not None]
    assert all(torch.isfinite(slope).all() for slope in slopes)
    # A batch of one has nothing to relate.
    assert any(slope.any() for slope in slopes) == moves or len(given["target"]) == 1
    assert all(leaf.grad is None for leaf in leaves(given, TEACHER))


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    @pytest.mark.slow
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

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_a_teacher_that_says_the_same_of_all_and_labels_that_are_all_equal(
        self, method: str, value: float
    ) -> None:
        given = signals()
        for name in TEACHER:
            given[name] = at_once(lambda t: torch.full_like(t, value).requires_grad_(), given[name])
        given["target"] = torch.zeros_like(given["target"])
        # All embeddings in a queue are equal then, and so are the similarities to them
        check_sound(method, given, moves=method != "queue")

    def test_all_features_equal_or_zero(self, method: str) -> None:
        """As in a dead layer: no root or norm may have an infinite gradient there."""
        for value in (0.0, 1.0):
            given = signals()
            for name in STUDENT[2:]:
                given[name] = at_once(
                    lambda t, v=value: torch.full_like(t, v).requires_grad_(), given[name]
                )
            parts = objective(method)(given)
            parts["loss"].backward()
            assert torch.isfinite(parts["loss"])
            for leaf in leaves(given, STUDENT):
                assert leaf.grad is None or leaf.grad.abs().max() < 1e6

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_full(self, method: str, dtype: torch.dtype) -> None:
        both = STUDENT + TEACHER
        halves = signals() | {
            name: at_once(lambda t: t.detach().to(dtype), signals()[name]) for name in both
        }
        fulls = halves | {name: at_once(Tensor.float, halves[name]) for name in both}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = objective(method)(halves)["loss"]
        made = objective(method)  # another, as some keep what they have seen
        expected = made.ce_weight(PROGRESS) * torch.nn.functional.cross_entropy(
            fulls["logits_s"], fulls["target"]
        )
        for term in made.terms:  # called as they are, outside of autocast
            numbers = {name: schedule(PROGRESS) for name, schedule in term.scheduled.items()}
            taken = {name: fulls[name] for name in term.signals}
            expected = expected + term.weight(PROGRESS) * term.loss(
                **taken, **term.constants, **numbers
            )
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(expected.item(), rel=1e-6)

    def test_the_term_alone_moves_the_student(self, method: str) -> None:
        given = signals()
        terms_alone(method, given).backward()
        slopes = [leaf.grad for leaf in leaves(given, STUDENT) if leaf.grad is not None]
        assert sum(slope.abs().sum() for slope in slopes) > 1e-4

    def test_zero_at_equal_logits_where_the_docstring_says_so(self, method: str) -> None:
        docs = [documentation(term.target) for term in read_loss(loss_node(method)).terms]
        claimed = all(re.search(r"\b0 where the two (agree|are equal)", doc) for doc in docs)
        given = signals(scale=3)
        for theirs, ours in zip(TEACHER, STUDENT, strict=True):
            given[theirs] = at_once(lambda t: t.detach().clone(), given[ours])
        given["head_t"] = given["head_s"]
        value = terms_alone(method, given).item()
        assert (abs(value) < 2e-6) == claimed, value
        if claimed:
            assert terms_alone(method, signals(scale=3)).item() > 1e-2

    def test_same_for_any_order_of_the_batch(self, method: str) -> None:
        if method == "semckd":
            pytest.skip("its attention knows the images by their place in the batch")
        given, order = signals(), torch.randperm(16, generator=torch.Generator().manual_seed(2))
        turned = {k: at_once(lambda t: t[order], v) for k, v in given.items()}
        a, b = objective(method)(given)["loss"], objective(method)(turned)["loss"]
        assert b.item() == pytest.approx(a.item(), rel=1e-5)

    def test_pairing_of_the_batch_matters(self, method: str) -> None:
        """If the inputs did not match row by row, the test above would prove nothing."""
        given = signals()
        shifted = {
            k: v if k in STUDENT else at_once(lambda t: t.roll(1, 0), v) for k, v in given.items()
        }
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
        for term in read_loss(loss_node(method)).terms:
            module = term.target.__module__.rpartition(".")[2]
            assert callable(getattr(kd.losses, f"{module}_loss"))


def documentation(target: Any) -> str:
    """Return the docstring of a term's loss; a class is documented by its function."""
    name = target.__module__.rpartition(".")[2]
    return " ".join(inspect.getdoc(getattr(kd.losses, f"{name}_loss")).split())


def test_every_file_has_its_config() -> None:
    in_use = {
        term.target.__module__.rpartition(".")[2]
        for path in (CONF / "loss").glob("*.yaml")
        for term in read_loss(loss_node(path.stem)).terms
    }
    assert in_use == {name.removesuffix("_loss") for name in kd.losses.__all__}


@pytest.mark.parametrize("method", ["kd", "kd_dist", "ctkd", "wkd_f"])
def test_the_losses_tested_here_are_those_that_the_command_composes(method: str) -> None:
    cfg = composed(f"loss={method}")
    assert loss_node(method) == OmegaConf.to_container(cfg.loss, resolve=True)


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
