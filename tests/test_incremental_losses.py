"""The losses of `kd.incremental` against formulas written out here, in float64 with loops."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from write_ups.lwf_rows import lwf_rows_loss

from kd.losses.der import der_loss, exemplars_loss, stream_loss
from kd.losses.icarl import icarl_labels_loss, icarl_loss
from kd.losses.lwf import lwf_loss, new_classes_loss
from kd.losses.lwf_bce import lwf_bce_loss
from kd.losses.lwf_mix import lwf_mix_loss

B, OLD, ALL = 7, 3, 5
G = torch.Generator().manual_seed(0)
S, T = 3 * torch.randn(B, ALL, generator=G), 3 * torch.randn(B, OLD, generator=G)
TARGET = torch.tensor([3, 4, 0, 3, 2, 4, 4])  # two images are exemplars, of old classes


def softmax(row: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    powers = [math.exp(value / temperature) for value in row]
    return np.array([power / sum(powers) for power in powers])


def rows(x: Tensor) -> np.ndarray:
    return x.double().numpy()


def soft_ce(temperature: float) -> float:
    """Return the batch mean of the cross-entropy on the old classes, both sides at this
    temperature.
    """
    total = 0.0
    for s, t in zip(rows(S), rows(T), strict=True):
        p, q = softmax(t, temperature), softmax(s[:OLD], temperature)
        total -= sum(p[c] * math.log(q[c]) for c in range(OLD))
    return total / B


def ce_all() -> float:
    return -sum(math.log(softmax(s)[y]) for s, y in zip(rows(S), TARGET.tolist(), strict=True)) / B


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_lwf(temperature: float) -> None:
    assert lwf_loss(S, T, temperature).item() == pytest.approx(soft_ce(temperature), rel=1e-6)


def test_the_new_classes_cross_entropy_is_over_their_slice_and_their_images() -> None:
    values = [
        -math.log(softmax(s[OLD:])[y - OLD])
        for s, y in zip(rows(S), TARGET.tolist(), strict=True)
        if y >= OLD
    ]
    assert len(values) == 5
    assert new_classes_loss(S, T, TARGET).item() == pytest.approx(sum(values) / 5, rel=1e-6)


def test_old_outputs_have_no_gradient_from_new_labels_nor_new_ones_from_the_teacher() -> None:
    old, new = slice(0, OLD), slice(OLD, ALL)
    for loss, still in ((new_classes_loss, old), (lwf_loss, new), (lwf_bce_loss, new)):
        s = S.clone().requires_grad_()
        (loss(s, T, TARGET) if loss is new_classes_loss else loss(s, T)).backward()
        assert not s.grad[:, still].any()
        assert s.grad.any()


def test_no_image_of_a_new_class_is_no_loss() -> None:
    assert new_classes_loss(S, T, torch.zeros(B, dtype=torch.int64)) == 0


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_lwf_bce(temperature: float) -> None:
    total = 0.0
    for s, t in zip(rows(S), rows(T), strict=True):
        p, q = softmax(t, temperature), softmax(s[:OLD], temperature)
        total -= sum(p[c] * math.log(q[c]) + (1 - p[c]) * math.log(1 - q[c]) for c in range(OLD))
    assert lwf_bce_loss(S, T, temperature).item() == pytest.approx(total / (B * OLD), rel=1e-5)


def test_lwf_bce_keeps_its_value_where_a_probability_rounds_to_one() -> None:
    # softmax(40, 0) is 1 - 4e-18, which float32 cannot tell from 1; the teacher says 0.5.
    loss = lwf_bce_loss(torch.tensor([[40.0, 0.0, 9.0]]), torch.tensor([[0.0, 0.0]]), 1.0)
    assert loss.item() == pytest.approx(20.0, rel=1e-6)


def test_lwf_bce_of_one_old_class_is_zero() -> None:
    s = S.clone().requires_grad_()
    loss = lwf_bce_loss(s, T[:, :1])
    loss.backward()
    assert loss == 0
    assert not s.grad.any()


@pytest.mark.parametrize(
    ("given", "share"), [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0), (None, OLD / ALL)]
)
def test_lwf_mix(given: float | None, share: float) -> None:
    expected = (1 - share) * ce_all() + share * soft_ce(2.0)
    assert lwf_mix_loss(S, T, TARGET, 2.0, given).item() == pytest.approx(expected, rel=1e-6)


def binary(wanted: Callable[[int, int], float], s: np.ndarray) -> float:
    """Return the sum over classes, mean over images, of the binary cross-entropy of sigmoid(s)."""
    total = 0.0
    for i in range(B):
        for c in range(ALL):
            g = 1 / (1 + math.exp(-s[i, c]))
            total -= wanted(i, c) * math.log(g) + (1 - wanted(i, c)) * math.log(1 - g)
    return total / B


def test_icarl() -> None:
    t = rows(T)

    def wanted(i: int, c: int) -> float:
        return 1 / (1 + math.exp(-t[i, c])) if c < OLD else float(TARGET[i] == c)

    assert icarl_loss(S, T, TARGET).item() == pytest.approx(binary(wanted, rows(S)), rel=1e-5)
    alone = binary(lambda i, c: float(TARGET[i] == c), rows(S))
    assert icarl_labels_loss(S, TARGET).item() == pytest.approx(alone, rel=1e-5)


def test_der() -> None:
    stored = T.clone()
    stored[[0, 1, 3]] = torch.nan  # no exemplars
    stored[4, 2:] = torch.nan  # kept before the third class came
    entries = [(i, c) for i in (2, 4, 5, 6) for c in range(OLD) if (i, c) != (4, 2)]
    expected = sum((float(S[i, c]) - float(T[i, c])) ** 2 for i, c in entries) / 11
    s = S.clone().requires_grad_()
    loss = der_loss(s, stored)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert torch.isfinite(s.grad).all()
    assert {(i, c) for i, c in s.grad.nonzero().tolist()} == set(entries)
    labels = [-math.log(softmax(rows(S)[i])[int(TARGET[i])]) for i in (0, 1, 3)]
    assert stream_loss(S, stored, TARGET).item() == pytest.approx(sum(labels) / 3, rel=1e-6)
    labels = [-math.log(softmax(rows(S)[i])[int(TARGET[i])]) for i in (2, 4, 5, 6)]
    assert exemplars_loss(S, stored, TARGET).item() == pytest.approx(sum(labels) / 4, rel=1e-6)


def test_nothing_stored_is_no_loss() -> None:
    assert der_loss(S, torch.full((B, OLD), torch.nan)) == 0
    assert exemplars_loss(S, torch.full((B, OLD), torch.nan), TARGET) == 0
    assert stream_loss(S, T, TARGET) == 0


def test_the_slip_of_write_ups_holds_no_image_past_the_first_to_the_old_net() -> None:
    held = {}
    for loss in (lwf_bce_loss, lwf_rows_loss):
        s = S.clone().requires_grad_()
        loss(s, T, temperature=2.0).backward()
        held[loss] = s.grad.abs().sum(1) > 0
    assert held[lwf_bce_loss].all()
    assert held[lwf_rows_loss].tolist() == [True] * OLD + [False] * (B - OLD)
    assert lwf_rows_loss(S[:OLD], T[:OLD]) == pytest.approx(
        float(lwf_bce_loss(S[:OLD], T[:OLD])), rel=1e-5
    )
