"""Methods against their papers' formulas, written out here in plain float64 loops, to 1e-9."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composed import loss_node

from kd.losses import (
    crld_loss,
    ctkd_loss,
    deit_hard_loss,
    dist_loss,
    dkd_loss,
    dml_loss,
    kd_loss,
    label_smoothing_loss,
    ldrld_loss,
    mlkd_loss,
    mlkd_views_loss,
    mse_logits_loss,
    nkd_loss,
    normkd_loss,
    ofa_loss,
    rld_loss,
    soft_ce_loss,
    tfkd_reg_loss,
    tfkd_self_loss,
    wkd_l_loss,
    wttm_loss,
)
from kd.losses.ctkd import CTKD

Rows = list[list[float]]
B, C = 7, 5
rng = np.random.default_rng(0)
S: Rows = rng.normal(0, 2, (B, C)).tolist()
T: Rows = rng.normal(0, 3, (B, C)).tolist()
Y: list[int] = rng.integers(0, C, B).tolist()
s, t, y = (
    torch.tensor(S, dtype=torch.float64),
    torch.tensor(T, dtype=torch.float64),
    torch.tensor(Y),
)


def softmax(z: list[float], temperature: float = 1.0) -> list[float]:
    e = [math.exp(v / temperature) for v in z]
    return [v / sum(e) for v in e]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def entropy_across(p: list[float], q: list[float]) -> float:
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def per_image(formula: Callable[[list[float], list[float], int], float]) -> float:
    return mean([formula(S[b], T[b], Y[b]) for b in range(B)])


def without(z: list[float], i: int) -> list[float]:
    return z[:i] + z[i + 1 :]


def kd_at(temperature: float) -> float:
    return per_image(
        lambda a, b, _: temperature**2 * kl(softmax(b, temperature), softmax(a, temperature))
    )


def standardized(z: list[float]) -> list[float]:
    m = mean(z)
    deviation = math.sqrt(sum((v - m) ** 2 for v in z) / (len(z) - 1))
    return [(v - m) / (deviation + 1e-7) for v in z]


def dkd_image(
    a: list[float], b: list[float], k: int, temperature: float, wt: float, wn: float
) -> float:
    p_s, p_t = softmax(a, temperature), softmax(b, temperature)
    target = kl([p_t[k], 1 - p_t[k]], [p_s[k], 1 - p_s[k]])
    q_s, q_t = ([v / (1 - p[k]) for v in without(p, k)] for p in (p_s, p_t))
    return temperature**2 * (wt * target + wn * kl(q_t, q_s))


def nkd_image(a: list[float], b: list[float], k: int, temperature: float, gamma: float) -> float:
    q_s, q_t = (softmax(without(z, k), temperature) for z in (a, b))
    return -softmax(b)[k] * math.log(softmax(a)[k]) + gamma * temperature**2 * entropy_across(
        q_t, q_s
    )


def ofa_image(a: list[float], b: list[float], k: int, temperature: float, epsilon: float) -> float:
    p_s, p_t = softmax(a, temperature), softmax(b, temperature)
    hit = [float(c == k) for c in range(C)]
    return -sum(((p_t[c] + hit[c]) ** epsilon - hit[c]) * math.log(p_s[c]) for c in range(C))


def pearson(u: list[float], v: list[float]) -> float:
    du, dv = [a - mean(u) for a in u], [a - mean(v) for a in v]
    cross = sum(a * b for a, b in zip(du, dv, strict=True))
    lengths = math.sqrt(sum(a * a for a in du)) * math.sqrt(sum(b * b for b in dv))
    return cross / (lengths + 1e-8)  # as in the authors' code


def dist_batch(temperature: float, inter: float, intra: float) -> float:
    p_s, p_t = ([softmax(z, temperature) for z in zs] for zs in (S, T))
    rows = mean([pearson(p_s[b], p_t[b]) for b in range(B)])
    columns = mean([pearson([p[c] for p in p_s], [p[c] for p in p_t]) for c in range(C)])
    return inter * (1 - rows) + intra * (1 - columns)


def mlkd_batch(temperatures: tuple[float, ...]) -> float:
    total = 0.0
    for temperature in temperatures:
        p_s, p_t = ([softmax(z, temperature) for z in zs] for zs in (S, T))

        def gram(p: Rows, i: int, j: int) -> float:
            return sum(p[i][c] * p[j][c] for c in range(C))

        def confusion(p: Rows, i: int, j: int) -> float:
            return sum(row[i] * row[j] for row in p)

        total += kd_at(temperature)
        total += (
            sum((gram(p_t, i, j) - gram(p_s, i, j)) ** 2 for i in range(B) for j in range(B)) / B
        )
        total += (
            sum(
                (confusion(p_t, i, j) - confusion(p_s, i, j)) ** 2
                for i in range(C)
                for j in range(C)
            )
            / C
        )
    return total


# Answers for strong views of the images: those of other images serve.
STRONG_S, STRONG_T = [*S[1:], S[0]], [*T[2:], *T[:2]]


def crld_batch(
    temperature: float, within: float, across: float, sure: float, sure_strong: float
) -> float:
    total = 0.0
    for a, b, c, d, k in zip(S, T, STRONG_S, STRONG_T, Y, strict=True):
        same, other = (
            sum(
                temperature**2 * kl(softmax(z, temperature), softmax(x, temperature))
                for x, z in pairs
            )
            for pairs in (((a, b), (c, d)), ((c, b), (a, d)))
        )
        total -= math.log(softmax(c)[k])
        total += within * same * (max(softmax(b)) >= sure)
        total += across * other * (max(softmax(d)) >= sure_strong)
    return total / B


def tfkd_reg_image(a: list[float], k: int, temperature: float, correct: float) -> float:
    u = [correct if c == k else (1 - correct) / (C - 1) for c in range(C)]
    return kl(softmax(u, temperature), softmax(a))


def dml_image(a: list[float], b: list[float], k: int) -> float:
    p_s, p_p = softmax(a), softmax(b)
    return kl(p_p, p_s) - math.log(p_p[k]) + kl(p_s, p_p)


def wttm_image(a: list[float], b: list[float], gamma: float) -> float:
    powers = [p**gamma for p in softmax(b)]
    return sum(powers) * kl([p / sum(powers) for p in powers], softmax(a))


def normkd_image(a: list[float], b: list[float], norm: float) -> float:
    t_s, t_t = (
        norm * (math.sqrt(sum((v - mean(z)) ** 2 for v in z) / (C - 1)) + 1e-7) for z in (a, b)
    )
    return t_t**2 * kl(softmax(b, t_t), softmax(a, t_s))


def rld_image(
    a: list[float], b: list[float], k: int, t: float, t_sample: float, alpha: float, beta: float
) -> float:
    sure, own = max(softmax(b, t_sample)), softmax(a, t_sample)[k]
    scd = t_sample**2 * kl([sure, 1 - sure], [own, 1 - own])
    below = [i for i in range(C) if b[i] < b[k]]
    mcd = kl(softmax([b[i] for i in below], t), softmax([a[i] for i in below], t)) * t**2
    return alpha * scd + beta * mcd


def ldrld_image(
    a: list[float], b: list[float], t: float, depth: int, local: float, rest: float
) -> float:
    ranked = sorted(range(C), key=lambda c: -a[c])
    first, others = ranked[:depth], ranked[depth:]

    def among(classes: list[int]) -> float:
        return kl(softmax([b[c] for c in classes], t), softmax([a[c] for c in classes], t))

    total, pairs = among(first), 0
    for j in range(1, len(first)):
        for i in range(j):
            weight = 2 * math.exp(-0.05 * (i + j + 2)) / (1.5 + j - i)
            total += weight * among([ranked[i], ranked[j]])
            pairs += 1
    return t**2 * (local * total / (pairs + 1) + rest * (among(others) if others else 0))


HEAD = torch.nn.Linear(3, C).double()


def wkd_l_image(
    a: list[float], b: list[float], k: int, t: float, gamma: float, sharp: float, lam: float, n: int
) -> float:
    """With Sinkhorn's iterations on the classes beside the label."""
    rows = HEAD.weight.detach().tolist()
    beside = [c for c in range(C) if c != k]

    def cost(i: int, j: int) -> float:
        dots = [
            sum(x * z for x, z in zip(rows[p], rows[q], strict=True))
            for p, q in ((i, j), (i, i), (j, j))
        ]
        return 1 - math.exp(-sharp * (1 - dots[0] / math.sqrt(dots[1] * dots[2]))) + 1e-8

    costs = [[cost(i, j) for j in beside] for i in beside]
    kernel = [[math.exp(-c / lam) for c in row] for row in costs]
    p_s, p_t = softmax(without(a, k), t), softmax(without(b, k), t)
    size = range(C - 1)
    u = [1 / (C - 1)] * (C - 1)
    for _ in range(n):
        v = [p_t[j] / (sum(u[i] * kernel[i][j] for i in size) + 1e-8) for j in size]
        u = [p_s[i] / (sum(kernel[i][j] * v[j] for j in size) + 1e-8) for i in size]
    moved = sum(u[i] * kernel[i][j] * v[j] * costs[i][j] for i in size for j in size)
    return -softmax(b)[k] * math.log(softmax(a)[k]) + gamma * moved


strong = tuple(torch.tensor(each, dtype=torch.float64) for each in (STRONG_S, STRONG_T))
FORMULAS = {
    "kd": (kd_loss(s, t, temperature=3.0), kd_at(3.0)),
    "kd standardized": (
        kd_loss(s, t, temperature=2.0, standardize=True),
        per_image(
            lambda a, b, _: 4 * kl(softmax(standardized(b), 2.0), softmax(standardized(a), 2.0))
        ),
    ),
    "mse_logits": (
        mse_logits_loss(s, t),
        mean([(S[b][c] - T[b][c]) ** 2 for b in range(B) for c in range(C)]),
    ),
    "soft_ce": (
        soft_ce_loss(s, t, temperature=3.0),
        per_image(lambda a, b, _: 9 * entropy_across(softmax(b, 3.0), softmax(a, 3.0))),
    ),
    "dkd": (
        dkd_loss(s, t, y, temperature=3.0, target_weight=0.7, non_target_weight=5.0),
        per_image(lambda a, b, k: dkd_image(a, b, k, 3.0, 0.7, 5.0)),
    ),
    "nkd": (
        nkd_loss(s, t, y, temperature=2.0, gamma=1.2),
        per_image(lambda a, b, k: nkd_image(a, b, k, 2.0, 1.2)),
    ),
    "dist": (
        dist_loss(s, t, temperature=2.0, inter_weight=0.8, intra_weight=1.7),
        dist_batch(2.0, 0.8, 1.7),
    ),
    "ctkd": (ctkd_loss(s, t, torch.tensor(5.5, dtype=torch.float64), reversal=0.3), kd_at(5.5)),
    "mlkd": (mlkd_loss(s, t, temperatures=(2.0, 5.0)), mlkd_batch((2.0, 5.0))),
    "crld": (
        crld_loss(s, t, *strong, y, 3.0, 1.7, 0.6, 0.5, 0.6),
        crld_batch(3.0, 1.7, 0.6, 0.5, 0.6),
    ),
    "mlkd_views": (
        mlkd_views_loss(s, t, s, t, temperatures=(2.0, 5.0)),
        2 * mlkd_batch((2.0, 5.0)),
    ),
    "ofa": (
        ofa_loss(s, t, y, temperature=2.0, epsilon=1.4),
        per_image(lambda a, b, k: ofa_image(a, b, k, 2.0, 1.4)),
    ),
    "tfkd_reg": (
        tfkd_reg_loss(s, y, temperature=7.0, correct=0.9),
        per_image(lambda a, _, k: tfkd_reg_image(a, k, 7.0, 0.9)),
    ),
    "tfkd_self": (tfkd_self_loss(s, t, temperature=6.0), kd_at(6.0)),
    "label_smoothing": (
        label_smoothing_loss(s),
        per_image(lambda a, _, __: entropy_across([1 / C] * C, softmax(a))),
    ),
    "dml": (dml_loss(s, t, y), per_image(dml_image)),
    "wttm": (
        wttm_loss(s, t, temperature=2.5),
        per_image(lambda a, b, _: wttm_image(a, b, 1 / 2.5)),
    ),
    "normkd": (
        normkd_loss(s, t, temperature=1.5),
        per_image(lambda a, b, _: normkd_image(a, b, 1.5)),
    ),
    "ldrld": (
        ldrld_loss(s, t, temperature=3.0, depth=3, local_weight=1.3, rest_weight=0.4),
        per_image(lambda a, b, _: ldrld_image(a, b, 3.0, 3, 1.3, 0.4)),
    ),
    "ldrld of all classes": (
        ldrld_loss(s, t, depth=9),
        per_image(lambda a, b, _: ldrld_image(a, b, 4.0, C, 10.5, 7.0)),
    ),
    "wkd_l": (
        wkd_l_loss(s, t, y, HEAD, 2.0, 30.0, 0.5, 0.1, 7),
        per_image(lambda a, b, k: wkd_l_image(a, b, k, 2.0, 30.0, 0.5, 0.1, 7)),
    ),
    "deit_hard": (
        deit_hard_loss(s, t),
        per_image(lambda a, b, _: -math.log(softmax(a)[b.index(max(b))])),
    ),
    "rld": (
        rld_loss(s, t, y, 3.0, 2.0, 0.7, 1.9),
        per_image(lambda a, b, k: rld_image(a, b, k, 3.0, 2.0, 0.7, 1.9)),
    ),
}


@pytest.mark.parametrize("method", FORMULAS)
def test_value_is_the_papers(method: str) -> None:
    found, expected = FORMULAS[method]
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


DEFAULTS = {
    "kd": (kd_loss(s, t), kd_at(4.0)),
    "soft_ce": (
        soft_ce_loss(s, t),
        per_image(lambda a, b, _: 16 * entropy_across(softmax(b, 4.0), softmax(a, 4.0))),
    ),
    "dkd": (dkd_loss(s, t, y), per_image(lambda a, b, k: dkd_image(a, b, k, 4.0, 1.0, 8.0))),
    "nkd": (nkd_loss(s, t, y), per_image(lambda a, b, k: nkd_image(a, b, k, 1.0, 1.5))),
    "dist": (dist_loss(s, t), dist_batch(1.0, 1.0, 1.0)),
    "mlkd": (mlkd_loss(s, t), mlkd_batch((2.0, 3.0, 4.0, 5.0, 6.0))),
    "crld": (crld_loss(s, t, *strong, y), crld_batch(4.0, 2.0, 0.5, 0.9, 0.2)),
    "ofa": (ofa_loss(s, t, y), per_image(lambda a, b, k: ofa_image(a, b, k, 1.0, 1.5))),
    "tfkd_reg": (tfkd_reg_loss(s, y), per_image(lambda a, _, k: tfkd_reg_image(a, k, 20.0, 0.99))),
    "tfkd_self": (tfkd_self_loss(s, t), kd_at(6.0)),
    "normkd": (normkd_loss(s, t), per_image(lambda a, b, _: normkd_image(a, b, 2.0))),
    "rld": (rld_loss(s, t, y), per_image(lambda a, b, k: rld_image(a, b, k, 4.0, 1.0, 1.0, 8.0))),
    "wkd_l": (
        wkd_l_loss(s, t, y, HEAD),
        per_image(lambda a, b, k: wkd_l_image(a, b, k, 8.0, 600.0, 1.0, 0.05, 10)),
    ),
    "ctkd": (CTKD().double()(s, t), kd_at(1 + 20 / (1 + math.exp(-1)))),
}


@pytest.mark.parametrize("method", DEFAULTS)
def test_defaults_are_the_authors(method: str) -> None:
    found, expected = DEFAULTS[method]
    assert found.item() == pytest.approx(expected, rel=1e-9)


SOFT = {
    "dkd": (lambda label: dkd_loss(s, t, label), lambda a, b, k: dkd_image(a, b, k, 4.0, 1.0, 8.0)),
    "nkd": (lambda label: nkd_loss(s, t, label), lambda a, b, k: nkd_image(a, b, k, 1.0, 1.5)),
    "ofa": (lambda label: ofa_loss(s, t, label), lambda a, b, k: ofa_image(a, b, k, 1.0, 1.5)),
    "rld": (
        lambda label: rld_loss(s, t, label),
        lambda a, b, k: rld_image(a, b, k, 4.0, 1.0, 1.0, 8.0),
    ),
    "wkd_l": (
        lambda label: wkd_l_loss(s, t, label, HEAD),
        lambda a, b, k: wkd_l_image(a, b, k, 8.0, 600.0, 1.0, 0.05, 10),
    ),
}


@pytest.mark.parametrize("method", SOFT)
@pytest.mark.parametrize("dense", [False, True])
def test_soft_label_is_the_mean_over_its_classes(method: str, dense: bool) -> None:
    loss, formula = SOFT[method]
    label = torch.zeros(B, C, dtype=torch.float64)
    for b in range(B):
        label[b, Y[b]], label[b, (Y[b] + 2) % C] = 0.7, 0.3
    if dense:
        label = 0.9 * label + 0.1 / C
    expected = (
        mean([float(label[b, k]) * formula(S[b], T[b], k) for b in range(B) for k in range(C)]) * C
    )
    assert loss(label).item() == pytest.approx(expected, rel=1e-9)


def test_soft_label_mixes_the_teacher_made_by_hand() -> None:
    label = torch.full((B, C), 0.1, dtype=torch.float64)
    label[:, 2] = 0.6
    u = [
        sum(label[0, k].item() * (0.99 if c == k else 0.01 / (C - 1)) for k in range(C))
        for c in range(C)
    ]
    expected = mean([kl(softmax(u, 20.0), softmax(a)) for a in S])
    assert tfkd_reg_loss(s, label).item() == pytest.approx(expected, rel=1e-9)


def test_kl_is_divided_by_the_batch_and_not_by_the_classes() -> None:
    """'mean' would be C times too small, 'sum' B times too large."""
    total = sum(kl(softmax(T[b], 4.0), softmax(S[b], 4.0)) for b in range(B)) * 16
    assert kd_loss(s, t, 4.0).item() == pytest.approx(total / B, rel=1e-12)
    twice = kd_loss(torch.cat([s, s]), torch.cat([t, t]), 4.0)
    assert twice.item() == pytest.approx(kd_loss(s, t, 4.0).item(), rel=1e-12)


def test_t_squared_keeps_the_gradient_as_the_temperature_grows() -> None:
    """Hinton et al. 2015, eq. 4: in the limit the gradient is (s - t) / C for logits of mean zero,
    per image.
    """
    z, v = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    z.requires_grad_()
    kd_loss(z, v, temperature=1e4).backward()
    torch.testing.assert_close(z.grad, (z.detach() - v) / C / B, rtol=1e-3, atol=1e-4)


def test_teacher_comes_first_in_the_kl() -> None:
    assert kd_loss(s, t, 1.0).item() != pytest.approx(kd_loss(t, s, 1.0).item(), rel=1e-3)


def test_kd_is_target_part_and_share_of_the_other_part() -> None:
    """Zhao et al. 2022, eq. 5, on one image: KD = TCKD + (1 - p_t(target)) NCKD."""
    one = s[:1], t[:1], y[:1]
    rest = 1 - softmax(T[0], 4.0)[Y[0]]
    found = dkd_loss(*one, temperature=4.0, target_weight=1.0, non_target_weight=rest)
    assert found.item() == pytest.approx(kd_loss(s[:1], t[:1], 4.0).item(), rel=1e-9)


def test_soft_ce_has_the_gradient_of_kd() -> None:
    a, b = s.clone().requires_grad_(), s.clone().requires_grad_()
    kd_loss(a, t, 3.0).backward()
    soft_ce_loss(b, t, 3.0).backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_label_smoothing_is_torchs() -> None:
    found = 0.9 * F.cross_entropy(s, y) + 0.1 * label_smoothing_loss(s)
    assert found.item() == pytest.approx(
        F.cross_entropy(s, y, label_smoothing=0.1).item(), rel=1e-12
    )


def test_standardized_forgets_size_and_place_of_the_logits() -> None:
    assert kd_loss(5 * s + 3, s, 2.0, standardize=True).item() == pytest.approx(0, abs=1e-12)
    assert kd_loss(5 * s + 3, s, 2.0).item() > 0.1


def test_ctkd_raises_the_loss_by_its_temperature() -> None:
    """The gradient at theta is the plain one times -reversal."""
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def value(x: float) -> float:
        return kd_at(1 + 20 / (1 + math.exp(-x)))

    slope = (value(0.3 + 1e-5) - value(0.3 - 1e-5)) / 2e-5
    ctkd_loss(s, t, 1 + 20 * torch.sigmoid(theta), reversal=0.4).backward()
    assert theta.grad.item() == pytest.approx(-0.4 * slope, rel=1e-6)


def test_dml_each_net_learns_from_the_others_answer_alone() -> None:
    a, b = s.clone().requires_grad_(), t.clone().requires_grad_()
    dml_loss(a, b, y).backward()
    p_s, p_p = s.softmax(1), t.softmax(1)
    torch.testing.assert_close(a.grad, (p_s - p_p) / B)
    torch.testing.assert_close(b.grad, ((p_p - F.one_hot(y, C)) + (p_p - p_s)) / B)


def rises(over: float, **ends: float) -> dict[str, object]:
    return {"schedule": "cosine" if "start" in ends else "warmup", **ends, "over": over}


# The weight of the labels, that of the term, and its numbers, as the authors train CIFAR-100 (NKD
# and OFA: ImageNet).
AUTHORS = {
    "ctkd": (0.1, 0.9, {"low": 1.0, "span": 20.0, "reversal": rises(0.042, start=0.0, end=1.0)}),
    "dist": (1.0, 1.0, {"temperature": 1.0, "inter_weight": 1.0, "intra_weight": 1.0}),
    "dkd": (
        1.0,
        rises(0.083, end=1.0),
        {"temperature": 4.0, "target_weight": 1.0, "non_target_weight": 8.0},
    ),
    "deit_hard": (0.5, 0.5, {}),
    "kd_standardized": (0.1, 9.0, {"temperature": 2.0, "standardize": True}),
    "label_smoothing": (0.9, 0.1, {}),
    "mlkd": (0.1, 0.9, {"temperatures": [2.0, 3.0, 4.0, 5.0, 6.0]}),
    "mlkd_views": (0.1, 0.9, {"temperatures": [2.0, 3.0, 4.0, 5.0, 6.0]}),
    "crld": (
        1.0,
        1.0,
        {"temperature": 4.0, "within": 2.0, "across": 0.5, "sure": 0.9, "sure_strong": 0.2},
    ),
    "ldrld": (
        1.0,
        1.0,
        {"temperature": 4.0, "depth": 7, "local_weight": 10.5, "rest_weight": 7.0},
    ),
    "nkd": (1.0, 1.0, {"temperature": 1.0, "gamma": 1.5}),
    "ofa": (1.0, 1.0, {"temperature": 1.0, "epsilon": 1.5}),
    "normkd": (0.1, 0.9, {"temperature": 2.0}),
    "rld": (
        1.0,
        rises(0.083, end=1.0),
        {"temperature": 4.0, "sample_temperature": 1.0, "sample_weight": 1.0, "masked_weight": 8.0},
    ),
    "soft_ce": (0.1, 0.9, {"temperature": 4.0}),
    "tfkd_reg": (0.9, 0.1, {"temperature": 20.0, "correct": 0.99}),
    "tfkd_self": (0.05, 0.95, {"temperature": 6.0}),
}


@pytest.mark.parametrize("method", AUTHORS)
def test_configured_as_the_authors_do(method: str) -> None:
    node = loss_node(method)
    (term,) = node["terms"].values()
    numbers = {name: value for name, value in term["loss"].items() if name != "_target_"}
    ce_weight, weight, expected = AUTHORS[method]
    assert (node["ce_weight"], term["weight"], numbers) == (
        pytest.approx(ce_weight),
        weight,
        expected,
    )


def test_dist_adds_the_authors_epsilon() -> None:
    """Where the teacher is very sure, the columns of other classes are nearly constant: 1e-8
    matters.
    """
    z_s = [[2.0, -1.0, 0.5, 0.0], [0.3, 1.2, -0.7, -0.2]]
    z_t = [[16.0, 1.0, 0.0, -2.0], [15.0, 0.0, 1.0, -3.0]]
    p_s, p_t = ([softmax(row, 1.0) for row in z] for z in (z_s, z_t))
    columns = [([p[c] for p in p_s], [p[c] for p in p_t]) for c in range(4)]
    expected = 2 - mean([pearson(*rows) for rows in zip(p_s, p_t, strict=True)])
    expected -= mean([pearson(*each) for each in columns])
    s, t = (torch.tensor(z, dtype=torch.float64, requires_grad=True) for z in (z_s, z_t))
    found = dist_loss(s, t)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.item() == pytest.approx(expected, rel=1e-7)  # 1.491; without it 1.545
    assert s.grad is not None
    assert s.grad.isfinite().all()
