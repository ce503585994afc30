"""Metrics against formulas written out here."""

import math

import numpy as np
import pytest
import torch

from kd.metrics import paired, summary


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
        if inside.any():
            ece += inside.mean() * abs(confidence[inside].mean() - (chosen == y)[inside].mean())
    assert found["ece"] == pytest.approx(ece, abs=1e-5)

    assert found["agreement"] == pytest.approx(np.mean(chosen == np.roll(chosen, 1)))
    assert summary(logits, labels)["agreement"] is None


@pytest.mark.filterwarnings("error")
def test_balanced_accuracy_is_over_the_classes_present() -> None:
    chosen, labels = [0, 1, 1, 2, 3, 1], torch.tensor([0, 0, 1, 1, 1, 1])  # 2 and 3 are chosen, but never true
    assert summary(logits_for(chosen, 5), labels)["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert summary(logits_for([4, 0], 5), torch.tensor([4, 4]))["balanced_accuracy"] == pytest.approx(1 / 2)


def test_paired_counts_only_the_images_that_differ() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    student = logits_for([0] * 80 + [1] * 20)
    baseline = logits_for([0] * 70 + [1] * 10 + [0] * 2 + [1] * 18)  # the student wins 10, loses 2
    found = paired(student, baseline, labels)
    assert found["gain"] == pytest.approx(0.08)
    # McNemar exact: 2 * P(Binomial(12, 1/2) <= 2)
    assert found["p_value"] == pytest.approx(2 * sum(math.comb(12, i) for i in range(3)) / 2**12)

    draws = np.random.default_rng(1).choice([0.0] * 88 + [1.0] * 10 + [-1.0] * 2, (20_000, 100)).mean(1)
    assert found["gain_ci95"] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.011)


def test_paired_with_itself_is_nothing() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    same = logits_for([0, 1, 1, 1])
    assert paired(same, same, labels) == {"gain": 0.0, "gain_ci95": [0.0, 0.0], "p_value": 1.0}
