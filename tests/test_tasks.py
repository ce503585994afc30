"""Task schedule, each task's data, exemplars, and measures of the accuracies."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kd.data.digits import Digits
from kd.errors import UserError
from kd.files.store import StageResult
from kd.tasks.data import TaskData
from kd.tasks.exemplars import Memory, herding, nearest_mean
from kd.tasks.forgetting import evaluation
from kd.tasks.schedule import Incremental, make_tasks

NAMES = tuple("abcdefghij")
PLAIN: dict[str, Any] = {
    "method": "lwf",
    "tasks": 5,
    "first": None,
    "step": None,
    "order_seed": None,
    "exemplars": 0,
    "exemplars_per": "memory",
    "weight": None,
    "classifier": "logits",
    "start_loss": None,
    "replay": "snapshot",
    "align": False,
    "keep_data": False,
}


def asked(**changes: Any) -> Incremental:
    return Incremental(**{**PLAIN, **changes})


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"tasks": 5}, [2, 2, 2, 2, 2]),
        ({"tasks": 3}, [4, 3, 3]),
        ({"tasks": 1}, [10]),
        ({"tasks": 10}, [1] * 10),
        ({"first": 5, "step": 1}, [5, 1, 1, 1, 1, 1]),
        ({"first": 4, "step": 4}, [4, 4, 2]),
        ({"first": 10, "step": 3}, [10]),
    ],
)
def test_sizes_of_tasks(changes: dict[str, Any], sizes: list[int]) -> None:
    tasks = make_tasks(asked(**changes), NAMES)
    assert [len(task) for task in tasks] == sizes
    assert [label for task in tasks for label in task] == list(range(10))


def test_the_order_is_seeded_and_whole() -> None:
    orders = [
        [label for task in make_tasks(asked(order_seed=s), NAMES) for label in task]
        for s in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(10))
    assert orders[0] != list(range(10))


def test_listed_classes_come_as_listed_whatever_the_seed() -> None:
    assert make_tasks(asked(tasks=[["c", "a"], ["b"]], order_seed=3), NAMES) == [(2, 0), (1,)]
    # A name first, then a label
    assert make_tasks(asked(tasks=[[1, 0], [2]]), ("10", "2", "1")) == [(2, 0), (1,)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": 11},
            r"^incremental.tasks: found 11, the data has 10 classes; accepted are 1 to 10$",
        ),
        ({"first": 11, "step": 1}, r"^incremental.first: found 11, the data has 10 classes$"),
        ({"first": 5}, r"^incremental.first: also needs incremental.step$"),
        (
            {"tasks": [["a", "b"], ["b"]]},
            r"^incremental.tasks: class 'b' is in task 1 and in task 2; .* comes once$",
        ),
        (
            {"tasks": [["a"], ["aa"]]},
            r"^incremental.tasks\[1\]: there is no class 'aa'; the data has a, .*mean 'a'\?$",
        ),
        ({"tasks": [["a"], [10]]}, r"^incremental.tasks\[1\]: there is no class '10'"),
        (
            {"exemplars": 9},
            r"^incremental.exemplars: found 9 for 10 classes.*accepted are 10 or more, or 0$",
        ),
        ({"replay": "stored"}, r"^incremental.exemplars: found 0; lwf needs some"),
        ({"classifier": "nearest_mean"}, r"^incremental.exemplars: found 0; lwf needs some"),
    ],
)
def test_what_cannot_be_shared_out_is_one_message(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_tasks(asked(**changes), NAMES)


def test_enough_exemplars_are_accepted() -> None:
    for changes in (
        {"exemplars": 10},
        {"exemplars": 1, "exemplars_per": "class"},
        {"exemplars": 3, "keep_data": True},
    ):
        assert make_tasks(asked(**changes), NAMES)


TASKS = [(7, 3), (0, 9, 1), (4,)]


@pytest.fixture(scope="module")
def source() -> TaskData:
    return TaskData(Digits(test_fraction=0.25, limit=300, augment={}), TASKS)


def test_a_tasks_data_holds_its_classes_and_no_other(source: TaskData) -> None:
    order = [7, 3, 0, 9, 1, 4]
    whole = source.data.split
    for number, task in enumerate(TASKS):
        data = source.task(number)
        start = sum(len(each) for each in TASKS[:number])
        assert data.classes == tuple(str(label) for label in order[: start + len(task)])
        for part, original in (
            (data.split.train, whole.train),
            (data.split.val, whole.val),
            (data.split.test, whole.test),
        ):
            mine = torch.isin(original.labels, torch.tensor(task))
            assert set(part.labels.tolist()) == set(range(start, start + len(task)))
            assert [order[label] for label in part.labels.tolist()] == original.labels[
                mine
            ].tolist()
            assert torch.equal(part.pixels[:], original.pixels[:][mine])


def test_statistics_are_of_the_tasks_own_images(source: TaskData) -> None:
    pixels = source.task(1).split.train.pixels[:].double() / 255
    assert source.task(1).statistics[0][0] == pytest.approx(float(pixels.mean()), abs=1e-6)
    assert source.task(1).statistics != source.data.statistics


def test_all_classes_so_far_and_all_under_their_own_order(source: TaskData) -> None:
    seen = source.until(1)
    assert seen.classes == ("7", "3", "0", "9", "1")
    assert set(seen.split.train.labels.tolist()) == set(range(5))
    whole = source.as_it_is()
    assert whole.classes == ("0", "1", "3", "4", "7", "9")
    kept = torch.isin(source.data.split.test.labels, torch.tensor([0, 1, 3, 4, 7, 9]))
    names = [int(whole.classes[label]) for label in whole.split.test.labels.tolist()]
    assert names == source.data.split.test.labels[kept].tolist()


def test_a_data_set_without_classes_left_out_is_itself() -> None:
    data = Digits(test_fraction=0.25, limit=300, augment={})
    every = TaskData(data, make_tasks(asked(order_seed=0), data.classes)).as_it_is()
    assert every.split.test.fingerprint == data.split.test.fingerprint
    assert every.split.train.fingerprint == data.split.train.fingerprint


def by_the_paper(features: np.ndarray, count: int) -> list[int]:
    """iCaRL, algorithm 4, word by word."""
    mu, chosen = features.mean(axis=0), []
    for k in range(1, count + 1):
        norms = {
            i: np.linalg.norm(
                mu
                - (features[i] + sum((features[j] for j in chosen), np.zeros(features.shape[1])))
                / k
            )
            for i in range(len(features))
            if i not in chosen
        }
        chosen.append(min(norms, key=norms.get))  # type: ignore[arg-type]
    return chosen


def test_herding() -> None:
    features = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = by_the_paper(features.numpy(), 12)
    assert herding(features, 12) == expected
    assert herding(features, 5) == expected[:5]
    assert sorted(herding(features, 99)) == list(range(30))
    nearest = (features - features.mean(0)).norm(dim=1).argmin()
    assert expected[0] == nearest


def test_herding_prefers_what_balances() -> None:
    assert herding(torch.tensor([[1.0], [5.0], [-1.1], [-4.9]]), 2) == [0, 2]


def test_nearest_mean() -> None:
    scores = nearest_mean(
        torch.tensor([[0.0, 1.0], [3.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    )
    assert torch.allclose(scores, -torch.tensor([[1.0, 18**0.5], [3.0, 4.0]]))


def test_exemplars_stay_within_the_budget(
    source: TaskData, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        "kd.tasks.exemplars.features_of",
        lambda done, data, images: torch.randn(len(images), 4, generator=rng),
    )
    for changes, counts in (
        ({"exemplars": 40}, [20, 8, 6]),
        ({"exemplars": 7}, [3, 1, 1]),
        ({"exemplars": 5, "exemplars_per": "class"}, [5, 5, 5]),
    ):
        memory = Memory(source, asked(**changes))
        stages = stages_of(tmp_path_factory.mktemp("stages"), [2, 5, 6])
        before: list[list[bytes]] = []
        for done, count in zip((stages[:1], stages[:2], stages), counts, strict=True):
            kept = memory.images(done)
            assert [len(each) for each in kept] == [count] * len(kept)
            assert [set(each.labels.tolist()) for each in kept] == [
                {place} for place in range(len(kept))
            ]
            assert changes.get("exemplars_per") or sum(map(len, kept)) <= changes["exemplars"]
            images = [[image.numpy().tobytes() for image in each.pixels[:]] for each in kept]
            train = {image.numpy().tobytes() for image in source.data.split.train.pixels[:]}
            assert all(image in train for each in images for image in each)
            for old, new in zip(before, images, strict=False):  # those chosen last are given up
                assert new == old[: len(new)]
            before = images


def stages_of(root: Path, classes: list[int]) -> list[StageResult]:
    """Empty finished stages that know only their number of classes."""
    folders = [root / str(i) for i in range(len(classes))]
    for folder in folders:
        folder.mkdir()
    return [
        StageResult(folder.name, folder, SimpleNamespace(spec=SimpleNamespace(shape=(1, 8, count))))  # type: ignore[arg-type]
        for folder, count in zip(folders, classes, strict=True)
    ]


def test_measures_by_hand() -> None:
    # Two images of each of three classes; the third task has two classes, of which one has no image
    # here.
    labels, sizes = torch.tensor([0, 0, 1, 1, 2, 2]), [1, 1, 2]
    chosen = [[0] * 6, [1, 0, 1, 1, 0, 0], [2, 2, 1, 3, 2, 2]]
    scores = [
        torch.nn.functional.one_hot(torch.tensor(row), width).float()
        for row, width in zip(chosen, (1, 2, 4), strict=True)
    ]
    found = evaluation(scores, labels, sizes, told=False)
    assert found.matrix == [[1.0], [0.5, 1.0], [0.0, 0.5, 1.0]]
    assert found.after == [1.0, 0.75, 0.5]
    assert found.average == pytest.approx(0.75)
    assert found.final == 0.5
    assert found.forgetting == pytest.approx(((1.0 - 0.0) + (1.0 - 0.5)) / 2)
    assert found.backward_transfer == pytest.approx(((0.0 - 1.0) + (0.5 - 1.0)) / 2)
    told = evaluation(scores, labels, sizes, told=True)
    # Of one class there is no wrong one
    assert told.matrix == [[1.0], [1.0, 1.0], [1.0, 1.0, 1.0]]
    assert told.forgetting == 0


def test_forgetting_is_from_the_best_and_transfer_from_the_first() -> None:
    labels, sizes = torch.tensor([0, 0, 0, 0, 1, 2]), [1, 1, 1]
    chosen = [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0], [0, 0, 0, 2, 2, 2]]
    scores = [
        torch.nn.functional.one_hot(torch.tensor(r), w).float()
        for r, w in zip(chosen, (1, 2, 3), strict=True)
    ]
    scores[0] = torch.zeros(6, 1)
    found = evaluation(scores, labels, sizes, told=False)
    assert [row[0] for row in found.matrix] == [1.0, 0.5, 0.75]
    assert found.forgetting == pytest.approx((0.25 + 1.0) / 2)
    better = copy.deepcopy(scores)
    better[1], better[2] = (
        scores[1],
        torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 0, 1, 2]), 3).float(),
    )
    found = evaluation(better, labels, sizes, told=False)
    assert found.forgetting == 0
    assert found.backward_transfer == 0


def test_a_task_that_got_better_is_negative_forgetting() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    chosen = [[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 2, 2]]
    scores = [
        torch.nn.functional.one_hot(torch.tensor(r), w).float()
        for r, w in zip(chosen, (2, 3), strict=True)
    ]
    found = evaluation(scores, labels, [2, 1], told=False)
    assert found.matrix == [[0.5], [0.75, 1.0]]
    assert found.forgetting == -0.25
    assert found.backward_transfer == 0.25


def test_one_task_forgets_nothing_that_could_be_told() -> None:
    found = evaluation([torch.eye(3)], torch.arange(3), [3], told=False)
    assert found.forgetting is None
    assert found.backward_transfer is None
    assert found.final == 1
