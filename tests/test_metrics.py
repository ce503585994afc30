"""Metrics against formulas written out here."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from kd.measure.calibration import fit_temperature
from kd.measure.metrics import paired_comparison, probability_metrics, summary


def logits_for(chosen: list[int], classes: int = 3, margin: float = 2.0) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(chosen), classes).float() * margin


def test_summary_against_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 4, generator=generator) * 2
    labels = torch.randint(0, 4, (500,), generator=generator)
    labels[:250] = logits[:250].argmax(1)
    found = summary(logits, labels, teacher=logits.roll(1, dims=0)).plain()

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

    # The share of pairs (one of the class, one of the rest) that the probability ranks correctly
    areas = []
    for c in range(4):
        inside, outside = np.exp(log_p[y == c, c]), np.exp(log_p[y != c, c])
        areas.append((inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean())
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-9)

    assert found["confusion"] == [
        [int(((y == t) & (chosen == p)).sum()) for p in range(4)] for t in range(4)
    ]
    assert found["agreement"] == pytest.approx(np.mean(chosen == np.roll(chosen, 1)))
    assert summary(logits, labels).agreement is None


def test_auroc_ranks_what_probabilities_cannot_tell_apart() -> None:
    # All probabilities are 1 or 0 in float64; the logits still have an order.
    logits, labels = (
        torch.tensor([[0.0, 90.0], [0.0, 80.0], [0.0, 70.0], [0.0, 60.0]]),
        torch.tensor([1, 0, 1, 0]),
    )
    assert summary(logits, labels).auroc == pytest.approx(3 / 4)
    three = torch.nn.functional.pad(logits, (0, 1), value=-50.0)[:, [2, 0, 1]]
    # Its class is found perfectly; the others have the same two pairs
    rest = torch.tensor([[75.0, 0.0, 0.0]])
    found = summary(torch.cat([three, rest]), torch.tensor([2, 1, 2, 1, 0])).plain()
    assert found["auroc"] == pytest.approx(np.mean([1, 4 / 6, 5 / 6]))


def test_auroc_needs_all_classes() -> None:
    assert summary(logits_for([0, 1, 0]), torch.tensor([0, 1, 0])).auroc is None


def test_of_many_classes_the_worst_stand_in_the_place_of_a_confusion_matrix() -> None:
    few = summary(logits_for([0, 1], 100), torch.tensor([0, 1])).plain()
    assert len(few["confusion"]) == 100
    assert "worst_classes" not in few
    labels = torch.arange(101).repeat(4)
    chosen = labels.clone()
    chosen[labels == 30] = 7  # none of 4 is right
    chosen[torch.tensor([5, 5 + 101, 5 + 202])] = 6  # 1 of 4
    chosen[50] = 2  # 3 of 4
    found = summary(logits_for(chosen.tolist(), 101), labels).plain()
    assert found["confusion"] is None
    assert len(found["worst_classes"]) == 20
    assert found["worst_classes"][:4] == [
        {"label": 30, "images": 4, "right": 0},
        {"label": 5, "images": 4, "right": 1},
        {"label": 50, "images": 4, "right": 3},
        {"label": 0, "images": 4, "right": 4},
    ]
    assert found["confused_pairs"] == [
        {"label": 30, "chosen": 7, "images": 4},
        {"label": 5, "chosen": 6, "images": 3},
        {"label": 50, "chosen": 2, "images": 1},
    ]


@pytest.mark.parametrize("block", [1, 50, 10**6], ids=["a row", "some rows", "all"])
def test_metrics_do_not_depend_on_how_many_rows_are_taken_at_a_time(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUROC against scikit-learn's, class by class."""
    monkeypatch.setattr("kd.measure.metrics.BLOCK", block)
    g = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(200, 6, generator=g)
    labels = torch.arange(200) % 6
    found = summary(logits, labels).plain()
    z = logits.double()
    rest = torch.stack([z[:, [j for j in range(6) if j != c]].logsumexp(1) for c in range(6)], 1)
    areas = [roc_auc_score(labels == c, (z - rest).numpy()[:, c]) for c in range(6)]
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)
    log_p = (z - z.logsumexp(1, keepdim=True)).numpy()
    assert found["nll"] == pytest.approx(-log_p[np.arange(200), labels].mean(), abs=1e-12)
    one_hot = np.eye(6)[labels]
    brier = ((np.exp(log_p) - one_hot) ** 2).sum(1).mean()
    assert found["brier"] == pytest.approx(brier, abs=1e-12)
    scaled = probability_metrics(logits * 3, labels, 3.0).plain()
    assert scaled["nll"] == pytest.approx(found["nll"], abs=1e-6)


def test_a_sure_order_of_scores_has_its_exact_area() -> None:
    """For two classes, count pairs; ties count half."""
    scores = torch.tensor([3.0, 2.0, 2.0, 1.0, 2.0, 0.0])
    logits, labels = torch.stack([torch.zeros(6), scores], 1), torch.tensor([1, 1, 0, 0, 0, 1])
    own, other = [3.0, 2.0, 0.0], [2.0, 1.0, 2.0]
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in own for b in other]
    assert summary(logits, labels).auroc == pytest.approx(sum(pairs) / 9, abs=1e-15)


def test_a_net_that_is_sure_is_in_the_last_bin() -> None:
    found = summary(logits_for([0, 1], margin=1000), torch.tensor([0, 0])).plain()
    assert found["reliability"][-1] == {"count": 2, "confidence": 1.0, "accuracy": 0.5}
    assert found["ece"] == pytest.approx(0.5)


@pytest.mark.filterwarnings("error")
def test_balanced_accuracy_is_over_the_classes_present() -> None:
    # 2 and 3 are chosen, but never true
    chosen, labels = ([0, 1, 1, 2, 3, 1], torch.tensor([0, 0, 1, 1, 1, 1]))
    assert summary(logits_for(chosen, 5), labels).balanced_accuracy == pytest.approx(
        (1 / 2 + 2 / 4) / 2
    )
    assert summary(logits_for([4, 0], 5), torch.tensor([4, 4])).balanced_accuracy == pytest.approx(
        1 / 2
    )


def test_paired_counts_only_the_images_that_differ() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    student = logits_for([0] * 80 + [1] * 20)
    baseline = logits_for([0] * 70 + [1] * 10 + [0] * 2 + [1] * 18)  # the student wins 10, loses 2
    found = paired_comparison(student, baseline, labels)
    assert found.gain == pytest.approx(0.08)
    # McNemar exact: 2 * P(Binomial(12, 1/2) <= 2)
    assert found.p_value == pytest.approx(2 * sum(math.comb(12, i) for i in range(3)) / 2**12)

    draws = (
        np.random.default_rng(1).choice([0.0] * 88 + [1.0] * 10 + [-1.0] * 2, (20_000, 100)).mean(1)
    )
    assert found.gain_ci95 == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.011)


@pytest.mark.parametrize(
    ("lost", "same", "won", "low", "high"),
    # Agresti and Min (2005): half an image more in each of the four cells, then Wald's interval:
    # (won - lost)/n +- 1.96 sqrt(won + lost - (won - lost)^2/n)/n, with n two more
    [
        (0, 4, 0, -1.96 / 6, 1.96 / 6),
        (0, 8, 0, -1.96 / 10, 1.96 / 10),
        (0, 100, 0, -1.96 / 102, 1.96 / 102),
        (0, 0, 8, 0.8 - 1.96 * math.sqrt(9 - 64 / 10) / 10, 1.0),
        (1, 5, 2, 0.1 - 1.96 * math.sqrt(4 - 1 / 10) / 10, 0.1 + 1.96 * math.sqrt(3.9) / 10),
    ],
)
def test_few_images_leave_an_interval(
    lost: int, same: int, won: int, low: float, high: float
) -> None:
    labels = torch.zeros(lost + same + won, dtype=torch.int64)
    student = logits_for([1] * lost + [0] * same + [0] * won)
    baseline = logits_for([0] * lost + [0] * same + [1] * won)
    found = paired_comparison(student, baseline, labels)
    assert found.gain == pytest.approx((won - lost) / len(labels))
    assert found.gain_ci95 == pytest.approx((low, high), abs=1e-4)
    # McNemar's exact test
    assert found.p_value == pytest.approx({(0, 0): 1, (0, 8): 2 / 2**8, (1, 2): 1}[lost, won])


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
    found = (
        summary(logits, labels, logits).plain()
        | paired_comparison(logits, logits, labels)._asdict()
    )
    assert found["auroc"] == auroc
    json.loads(json.dumps(found), parse_constant=pytest.fail)  # NaN and infinity are no JSON
    assert found["agreement"] == 1.0
    temperature = fit_temperature(logits, labels)
    assert temperature is None or 0 < temperature < math.inf
