"""Metrics against formulas written out here."""

import json
import math

import numpy as np
import pytest
import torch

from kd.measure.calibration import fit_temperature
from kd.measure.metrics import paired, summary


def logits_for(chosen: list[int], classes: int = 3, margin: float = 2.0) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(chosen), classes).float() * margin


def test_summary_against_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 4, generator=generator) * 2
    labels = torch.randint(0, 4, (500,), generator=generator)
    labels[:250] = logits[:250].argmax(1)
    found = summary(logits, labels, teacher=logits.roll(1, dims=0))

    z, y = logits.double().numpy(), labels.numpy()
    n, chosen = len(y), z.argmax(1)
    k = int((chosen == y).sum())
    assert found["accuracy"] == k / n

    # Wilson 1927: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    q, p = 1.959963984540054, k / n
    middle, half = p + q * q / (2 * n), q * math.sqrt(p * (1 - p) / n + q * q / (4 * n * n))
    assert found["accuracy_ci95"] == pytest.approx(
        [(middle - half) / (1 + q * q / n), (middle + half) / (1 + q * q / n)]
    )

    recalls = [np.mean(chosen[y == c] == c) for c in range(4)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))

    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    assert found["nll"] == pytest.approx(-log_p[np.arange(n), y].mean(), abs=1e-9)

    confidence, ece = np.exp(log_p).max(1), 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        assert found["reliability"][i]["count"] == inside.sum()
        if inside.any():
            ece += inside.mean() * abs(confidence[inside].mean() - (chosen == y)[inside].mean())
            assert found["reliability"][i]["confidence"] == pytest.approx(confidence[inside].mean())
            assert found["reliability"][i]["accuracy"] == pytest.approx(
                (chosen == y)[inside].mean()
            )
        else:
            assert found["reliability"][i] == {"count": 0, "confidence": None, "accuracy": None}
    assert found["ece"] == pytest.approx(ece, abs=1e-9)

    one_hot = np.eye(4)[y]
    assert found["brier"] == pytest.approx(((np.exp(log_p) - one_hot) ** 2).sum(1).mean(), abs=1e-9)

    areas = []  # the share of pairs, one of the class and one of the rest, that the probability puts in order
    for c in range(4):
        inside, outside = np.exp(log_p[y == c, c]), np.exp(log_p[y != c, c])
        areas.append((inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean())
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-9)

    assert found["confusion"] == [
        [int(((y == t) & (chosen == p)).sum()) for p in range(4)] for t in range(4)
    ]
    assert found["agreement"] == pytest.approx(np.mean(chosen == np.roll(chosen, 1)))
    assert summary(logits, labels)["agreement"] is None


def test_auroc_ranks_what_probabilities_cannot_tell_apart() -> None:
    # All probabilities are 1 or 0 in float64; the logits still have an order.
    logits, labels = (
        torch.tensor([[0.0, 90.0], [0.0, 80.0], [0.0, 70.0], [0.0, 60.0]]),
        torch.tensor([1, 0, 1, 0]),
    )
    assert summary(logits, labels)["auroc"] == pytest.approx(3 / 4)
    three = torch.nn.functional.pad(logits, (0, 1), value=-50.0)[:, [2, 0, 1]]
    rest = torch.tensor(
        [[75.0, 0.0, 0.0]]
    )  # its class is found without fault; of the others the same two pairs
    found = summary(torch.cat([three, rest]), torch.tensor([2, 1, 2, 1, 0]))
    assert found["auroc"] == pytest.approx(np.mean([1, 4 / 6, 5 / 6]))


def test_auroc_needs_all_classes() -> None:
    assert summary(logits_for([0, 1, 0]), torch.tensor([0, 1, 0]))["auroc"] is None


def test_a_large_confusion_matrix_is_left_out() -> None:
    assert summary(logits_for([0, 1], 101), torch.tensor([0, 1]))["confusion"] is None
    assert len(summary(logits_for([0, 1], 100), torch.tensor([0, 1]))["confusion"]) == 100


def test_a_net_that_is_sure_is_in_the_last_bin() -> None:
    found = summary(logits_for([0, 1], margin=1000), torch.tensor([0, 0]))
    assert found["reliability"][-1] == {"count": 2, "confidence": 1.0, "accuracy": 0.5}
    assert found["ece"] == pytest.approx(0.5)


@pytest.mark.filterwarnings("error")
def test_balanced_accuracy_is_over_the_classes_present() -> None:
    chosen, labels = (
        [0, 1, 1, 2, 3, 1],
        torch.tensor([0, 0, 1, 1, 1, 1]),
    )  # 2 and 3 are chosen, but never true
    assert summary(logits_for(chosen, 5), labels)["balanced_accuracy"] == pytest.approx(
        (1 / 2 + 2 / 4) / 2
    )
    assert summary(logits_for([4, 0], 5), torch.tensor([4, 4]))[
        "balanced_accuracy"
    ] == pytest.approx(1 / 2)


def test_paired_counts_only_the_images_that_differ() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    student = logits_for([0] * 80 + [1] * 20)
    baseline = logits_for([0] * 70 + [1] * 10 + [0] * 2 + [1] * 18)  # the student wins 10, loses 2
    found = paired(student, baseline, labels)
    assert found["gain"] == pytest.approx(0.08)
    # McNemar exact: 2 * P(Binomial(12, 1/2) <= 2)
    assert found["p_value"] == pytest.approx(2 * sum(math.comb(12, i) for i in range(3)) / 2**12)

    draws = (
        np.random.default_rng(1).choice([0.0] * 88 + [1.0] * 10 + [-1.0] * 2, (20_000, 100)).mean(1)
    )
    assert found["gain_ci95"] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.011)


def test_paired_with_itself_is_nothing() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    same = logits_for([0, 1, 1, 1])
    assert paired(same, same, labels) == {"gain": 0.0, "gain_ci95": [0.0, 0.0], "p_value": 1.0}


@pytest.mark.parametrize(
    ("logits", "labels", "auroc"),
    [
        (torch.zeros(50, 3), torch.arange(50) % 3, 0.5),
        (
            torch.randn(50, 3, generator=torch.Generator().manual_seed(0)),
            torch.zeros(50, dtype=torch.int64),
            None,
        ),
        (torch.tensor([[9.0, -9.0]]), torch.tensor([1]), None),
        (torch.tensor([[1e30, -1e30]] * 4), torch.tensor([0, 1, 0, 1]), 0.5),
    ],
    ids=[
        "a net that says the same of all",
        "labels that are all equal",
        "one image",
        "huge logits",
    ],
)
def test_what_cannot_be_said_is_none_and_all_else_a_number(
    logits: torch.Tensor, labels: torch.Tensor, auroc: float | None
) -> None:
    found = {**summary(logits, labels, logits), **paired(logits, logits, labels)}
    assert found["auroc"] == auroc
    json.loads(json.dumps(found), parse_constant=pytest.fail)  # NaN and infinity are no JSON
    assert found["agreement"] == 1.0
    temperature = fit_temperature(logits, labels)
    assert temperature is None or 0 < temperature < math.inf
