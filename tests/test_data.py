"""The DataModule: parts, keys, order, ranks, weights, unlabelled images; and the real data sets."""

import contextlib
import math
import os
import pickle
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import Process
from torch import Tensor, nn

from kd.data import batches
from kd.data.base import DataModule, Images, Source
from kd.data.batches import EpochOrder, InOrder
from kd.data.chest_xray import ChestXRay
from kd.data.cifar10 import CIFAR10
from kd.data.cifar100 import CIFAR100
from kd.data.digits import Digits
from kd.data.epoch_views import EpochViews
from kd.data.fashion_mnist import FashionMNIST
from kd.data.images import Pixels, PixelStore
from kd.data.mnist import MNIST
from kd.data.parts import long_tail
from kd.data.torchvision_reader import IDX
from kd.data.views import Augment, make_views, normalize, to_unit
from kd.errors import UserError
from kd.measure.metrics import predict_logits, summary
from kd.teachers.frozen_teacher import FrozenTeacher
from kd.teachers.live_teacher import LiveTeacher
from kd.training.distiller import Distiller
from kd.training.label_loss import accuracy, label_loss
from kd.training.loss_spec import read_loss
from kd.training.objective import Objective

DATA = Path(os.environ.get("KD_DATA_DIR", "data"))


class Made(DataModule):
    """Noise, with 90 images of the first class for 10 of the second."""

    def read(self) -> Source:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (200, 3, 8, 8), generator=generator, dtype=torch.uint8)
        return Source(Images(pixels, (torch.arange(200) % 10 == 0).long()), None, ("often", "rare"))


def test_parts_are_apart_and_stratified() -> None:
    split = Made(test_fraction=0.2, val_fraction=0.25).split
    assert (len(split.train), len(split.val), len(split.test)) == (120, 40, 40)
    assert [int(part.labels.sum()) for part in (split.train, split.val, split.test)] == [12, 4, 4]
    rows = torch.cat([part.pixels.rows for part in (split.train, split.val, split.test)])
    assert rows.sort().values.tolist() == list(range(200))


def test_statistics_are_those_of_the_training_part() -> None:
    data = Made(limit=50)
    x = data.split.train.pixels[:].double() / 255
    mean, std = data.statistics
    assert len(data.split.train) == 50
    assert np.allclose(mean, x.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(std, x.std((0, 2, 3), correction=0), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 50},
        {"imbalance": 20.0},
        {"split_seed": 1},
        {"val_fraction": 0.2},
        {"augment": {"rotation": 5}},
        {"views": 3},
        {"class_weights": "balanced"},
        {"sampler": "balanced"},
        {"logit_adjustment": 1.0},
        {"focal_gamma": 2.0},
    ],
)
def test_the_key_changes_with_what_training_depends_on(change: dict[str, Any]) -> None:
    assert Made().key() == Made().key()
    assert Made().key() != Made(**change).key()


def test_the_key_does_not_change_with_anything_else(tmp_path: Path) -> None:
    same = Made(
        root=str(tmp_path),
        num_workers=3,
        cache="ram",
        cache_dir=str(tmp_path),
        on_bad_image="skip",
        license="CC0",
    )
    assert same.key() == Made().key()


def test_the_fingerprint_sees_every_pixel_and_label() -> None:
    pixels, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    other, second = pixels.clone(), labels.clone()
    other[2, 0, 1, 1] = 1
    second[1] = 1
    found = [
        Images(p, n).fingerprint for p, n in ((pixels, labels), (other, labels), (pixels, second))
    ]
    found.append(Images(pixels.view(3, 1, 1, 4), labels).fingerprint)
    assert len(set(found)) == 4
    assert Images(pixels.clone(), labels.clone()).fingerprint == found[0]


def test_pixels_of_several_stores_are_one_array() -> None:
    first, second = (torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8) for n in (5, 7))
    whole = torch.cat([first, second])
    pixels = Pixels.join([Pixels.whole(PixelStore(first)), Pixels.whole(PixelStore(second))])
    where = torch.tensor([11, 0, 4, 5, 5, 2])
    assert pixels.shape == (12, 3, 4, 4)
    assert torch.equal(pixels[where], whole[where])
    assert torch.equal(pixels.at(where)[1:4], whole[where][1:4])
    assert torch.equal(pixels.at(where).facts.sums, whole[where].long().sum((2, 3)))


@settings(deadline=None, max_examples=50)
@given(
    size=st.integers(1, 200),
    batch=st.integers(1, 40),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 2**63 - 1),
)
def test_an_epoch_is_a_seeded_permutation_shared_out_among_ranks(
    size: int, batch: int, ranks: int, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        for rank in range(ranks):
            patch.setattr(batches, "rank", lambda rank=rank: rank)
            order = EpochOrder(size, batch, seed, ranks)
            order.set_epoch(2)
            mine = list(order)
            assert len(mine) == len(order) == size // (batch * ranks)
            assert all(len(each) == batch for each in mine)
            seen += [i for each in mine for i in each]
            assert mine == list(order)  # asking twice changes nothing
        assert len(set(seen)) == len(seen) == size // (batch * ranks) * batch * ranks
        assert set(seen) <= set(range(size))


def test_epochs_and_seeds_have_orders_of_their_own_whatever_came_before() -> None:
    def epoch(seed: int, number: int) -> list[list[int]]:
        order = EpochOrder(64, 64, seed)
        order.set_epoch(number)
        return list(order)

    assert epoch(0, 3) == epoch(0, 3)
    assert len({str(epoch(seed, number)) for seed in range(3) for number in range(4)}) == 12
    assert sorted(epoch(0, 1)[0]) == list(range(64))


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 200), batch=st.integers(1, 40), ranks=st.integers(1, 4))
def test_validation_shows_each_image_on_one_rank_once(size: int, batch: int, ranks: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        for rank in range(ranks):
            patch.setattr(batches, "rank", lambda rank=rank: rank)
            order = InOrder(size, batch, ranks)
            assert len(list(order)) == len(order)
            seen += [i for each in order for i in each]
        assert sorted(seen) == list(range(size))


def shown(data: DataModule, batch_size: int, epoch: int, ranks: int = 1) -> dict[int, Tensor]:
    """Return each image's view in an epoch, by index, through the loaders of all ranks."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(ranks):
            patch.setattr(batches, "rank", lambda rank=rank: rank)
            loader = data.train_loader(batch_size, seed=5, ranks=ranks)
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            for pixels, _, index in loader:
                x = make_views(
                    pixels, index, seed=5, view=epoch, augment=data.augment, pool=data.split.train
                )
                found |= dict(zip(index.tolist(), x, strict=True))
    return found


@pytest.mark.slow
def test_views_do_not_depend_on_batches_workers_or_ranks() -> None:
    augment = {"crop_padding": 2, "rotation": 10, "mixup": 1.0, "cutmix": 1.0}
    wanted = shown(Made(augment=augment), batch_size=1, epoch=3)
    assert len(wanted) == 144
    for data, batch_size, ranks in (
        (Made(augment=augment), 16, 1),
        (Made(augment=augment, num_workers=2), 9, 1),
        (Made(augment=augment), 16, 2),
    ):
        found = shown(data, batch_size, 3, ranks)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[i], wanted[i]) for i in wanted)


def test_balanced_weights_give_each_class_the_same_say() -> None:
    data = Made(class_weights="balanced")
    labels = data.split.train.labels
    weights = data.loss_weights
    assert weights is not None
    says = [float((labels == c).sum()) * weights[c] for c in range(2)]
    assert says[0] == pytest.approx(says[1]) == pytest.approx(len(labels) / 2)
    assert Made().loss_weights is None


def test_a_long_tail_has_the_counts_of_the_literature() -> None:
    """CIFAR-10-LT at ratio 100 (Cui et al. 2019): 12,406 of 50,000 images."""

    def tail(ratio: float, seed: int = 0) -> Images:
        return long_tail(whole, ratio, seed)

    labels = torch.arange(50_000) % 10
    whole = Images(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), labels)
    found = tail(100.0)
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert torch.bincount(found.labels).tolist() == counts
    assert sum(counts) == 12_406
    names = [int(name) for name in found.names]
    assert names == sorted(names)
    assert {*names} < {int(name) for name in tail(10.0).names}
    assert {*names} != {int(name) for name in tail(100.0, seed=1).names}
    few = Images(whole.pixels.at(torch.arange(5)), torch.tensor([0, 0, 0, 1, 1]))
    assert torch.bincount(long_tail(few, 1.2, 0).labels).tolist() == [3, 2]
    with pytest.raises(UserError, match=r"data\.imbalance: found 3 with data\.task=multilabel"):
        long_tail(few.with_labels(torch.ones(5, 2, dtype=torch.int8)), 3.0, 0)
    data = Made(imbalance=20.0)
    assert torch.bincount(data.split.train.labels).tolist() == [130, 6]
    assert (len(data.split.val), len(data.split.test)) == (16, 40)


def test_a_balanced_epoch_shows_each_class_equally_often() -> None:
    data = Made(sampler="balanced", limit=100)
    labels = data.split.train.labels
    assert torch.bincount(labels).tolist() == [90, 10]

    def epoch(number: int, data: DataModule = data, ranks: int = 1) -> list[int]:
        found = []
        for rank in range(ranks):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(batches, "rank", lambda rank=rank: rank)
                loader = data.train_loader(10, seed=5, ranks=ranks)
                loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
                found.append([i for _, _, index in loader for i in index.tolist()])
        return [i for turn in zip(*found, strict=True) for i in turn]

    shown = epoch(3)
    assert shown == epoch(3) == epoch(3, ranks=2) != epoch(4)
    assert sum(int(labels[i % 100]) for i in shown) == 50
    often = Counter(i % 100 for i in shown)
    assert {often[i] for i in range(100) if labels[i] == 1} == {5}
    assert max(often[i] for i in range(100) if labels[i] == 0) == 1
    assert len(set(shown)) == 100, "an image that comes again has another view"
    some = Made(sampler="balanced", limit=100, labels=40).for_stage("transfer")
    known = [int(some.split.train.labels[i % 100]) for i in epoch(0, some)]
    assert Counter(known) == {-1: 60, 0: 20, 1: 20}


def test_label_loss_allows_for_class_sizes_and_for_sure_images() -> None:
    """Menon et al. 2021, eq. 10, and Lin et al. 2017, eq. 4, by hand."""
    logits, target = torch.tensor([[1.0, -1.0], [0.5, 2.0]]).double(), torch.tensor([0, 0])
    offsets = Made(logit_adjustment=1.5, limit=100).logit_offsets
    assert offsets == pytest.approx([1.5 * math.log(0.9), 1.5 * math.log(0.1)])
    assert Made().logit_offsets is None

    def log_p(own: float, other: float) -> float:
        return own - math.log(math.exp(own) + math.exp(other))

    adjusted = [log_p(a + offsets[0], b + offsets[1]) for a, b in logits.tolist()]
    found = label_loss(logits, target, offsets=offsets)
    assert float(found) == pytest.approx(-sum(adjusted) / 2, rel=1e-6)
    focal = [(1 - math.exp(log_p(a, b))) ** 2 * log_p(a, b) for a, b in logits.tolist()]
    found = label_loss(logits, target, focal_gamma=2.0)
    assert float(found) == pytest.approx(-sum(focal) / 2, rel=1e-6)
    soft = torch.tensor([[0.7, 0.3], [0.0, 0.0]]).double()  # a mixed view, and one without a label
    other = (1 - math.exp(log_p(-1, 1))) ** 2 * log_p(-1, 1)
    found = label_loss(logits, soft, (2.0, 1.0), focal_gamma=2.0)
    assert float(found) == pytest.approx(-(0.7 * 2 * focal[0] + 0.3 * other), rel=1e-6)


def test_label_loss_is_the_mean_over_the_labelled_images() -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 2, -1, 1, -1, 2])
    p = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    weights = (0.5, 2.0, 3.0)
    terms = [-weights[c] * torch.log(p[i, c]) for i, c in enumerate(target.tolist()) if c >= 0]
    wanted = torch.stack(terms).mean()
    assert label_loss(logits, target, weights) == pytest.approx(float(wanted), rel=1e-12)
    soft = torch.where((target >= 0)[:, None], F.one_hot(target.clamp(min=0), 3).double(), 0.0)
    assert label_loss(logits, soft, weights) == pytest.approx(float(wanted), rel=1e-12)
    assert label_loss(logits[:2], target[:2]) == pytest.approx(
        float(F.cross_entropy(logits[:2], target[:2]))
    )
    mixed = torch.tensor([[0.3, 0.7, 0.0]]).double()
    by_hand = -0.3 * 0.5 * torch.log(p[0, 0]) - 0.7 * 2.0 * torch.log(p[0, 1])
    assert label_loss(logits[:1], mixed, weights) == pytest.approx(float(by_hand), rel=1e-6)


@pytest.mark.parametrize("target", [torch.tensor([-1, -1]), torch.zeros(2, 3)])
def test_a_batch_without_labels_has_no_label_loss(target: Tensor) -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = label_loss(logits, target)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_accuracy_counts_labelled_images_by_their_dominant_label() -> None:
    logits = torch.eye(3)
    share, count = accuracy(logits, torch.tensor([0, -1, 0]))
    assert (float(share), float(count)) == (0.5, 2)
    share, count = accuracy(logits, torch.tensor([[0.6, 0.4, 0], [0.5, 0.4, 0.1], [0, 0, 0]]))
    assert (float(share), float(count)) == (0.5, 2)


def test_metrics_of_two_classes() -> None:
    logits = torch.tensor([[2.0, 0], [0, 2], [0, 1], [0, 3], [1, 0], [0, 200]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    found = summary(logits, labels).plain()
    assert found["sensitivity"] == pytest.approx(2 / 3)
    assert found["specificity"] == pytest.approx(1 / 3)
    assert found["balanced_accuracy"] == pytest.approx(1 / 2)
    scores = (logits[:, 1] - logits[:, 0]).tolist()
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[3:] for n in scores[:3]]
    assert found["auroc"] == pytest.approx(sum(pairs) / 9)
    assert summary(logits[:3], labels[:3]).auroc is None
    assert summary(logits[:3], labels[:3]).sensitivity is None
    assert "sensitivity" not in summary(torch.randn(6, 3), labels).plain()


class Large(DataModule):
    """Blank pictures of 300x300 pixels."""

    def read(self) -> Source:
        pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(60, 3, 300, 300)
        return Source(Images(pixels, torch.arange(60) % 2), None, ("a", "b"))


def test_nets_are_shown_fewer_large_images_at_once() -> None:
    """Activations grow with the images, so a batch is limited in pixels."""
    seen: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.shape[0])
            return x.mean((2, 3))[:, :2]

    data = Large(test_fraction=0.5, val_fraction=0.5)
    logits = predict_logits(Counting(), data, data.split.test)
    assert logits.shape == (30, 2)
    assert seen == [11, 11, 8]  # 2^20 pixels
    assert [len(labels) for _, labels, _ in data.val_loader()] == [11, 4]
    for gpu, small in ((False, 64), (True, 256)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
            assert Made().evaluation_batch == small


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A folder of unlabelled images."""
    (tmp_path / "pool" / "deep").mkdir(parents=True)
    for i in range(12):
        Image.fromarray(np.full((9, 9, 3), 20 * i, np.uint8)).save(
            tmp_path / "pool" / "deep" / f"{i}.png"
        )
    return tmp_path / "pool"


def test_images_without_labels_join_where_a_teacher_is(pool: Path) -> None:
    data, alone = Made(unlabeled=str(pool)), Made()
    images = data.for_stage("transfer").split.train
    assert len(images) == len(alone.split.train) + 12
    assert images.labels[-12:].tolist() == [-1] * 12
    assert images.pixels[-12:].shape == (12, 3, 8, 8)
    assert len(data.split.train) == len(alone.split.train)
    assert data.for_stage("all").key() == alone.key()  # so that the teacher is not trained again
    assert data.for_stage("transfer").key() != alone.for_stage("transfer").key()
    assert data.for_stage("transfer").statistics == alone.statistics


def test_a_bad_file_of_the_pool_is_found_before_training(pool: Path) -> None:
    (pool / "bad.png").write_text("hello")
    with pytest.raises(UserError, match=r"data.unlabeled: 1 of 13(.|\n)*bad.png: not an image"):
        _ = Made(unlabeled=str(pool)).split


class Recorder(nn.Module):
    """Net that keeps its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        logits: Tensor = self.layer(x.flatten(1))
        return logits


def test_each_net_sees_the_same_mixed_view_under_its_own_normalisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Made(augment={"mixup": 1.0, "crop_padding": 1})
    teacher = FrozenTeacher(Recorder(), (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    kd = {"weight": 1.0, "loss": {"_target_": "kd.losses.kd.kd_loss"}}
    distiller = Distiller(
        Recorder(),
        Objective(read_loss({"ce_weight": 1.0, "terms": {"kd": kd}}), data.shape),
        lambda net, steps, extra: (torch.optim.SGD(net.parameters(), 0.1), None),
        views=EpochViews(data.augment, 1, pool=data.split.train),
        normalization=data.statistics,
        seed=1,
        teacher=LiveTeacher(teacher),
    )
    monkeypatch.setattr(
        Distiller,
        "trainer",
        type("T", (), {"optimizers": [torch.optim.SGD(distiller.parameters())], "global_step": 0}),
    )
    monkeypatch.setattr(Distiller, "current_epoch", 0)
    batch = next(iter(data.train_loader(16, 0)))
    distiller.steps = 1
    distiller.training_step(batch, 0)
    x = make_views(batch[0], batch[2], seed=1, view=0, augment=data.augment, pool=data.split.train)
    assert torch.equal(distiller.net.seen[0], normalize(x, *data.statistics))  # type: ignore[union-attr,operator,index]
    assert torch.equal(teacher.net.seen[0][:16], normalize(x, teacher.mean, teacher.std))  # type: ignore[union-attr,operator,index]


@pytest.mark.parametrize("cycle", [None, 2])
def test_views_are_new_in_each_epoch_or_come_again(cycle: int | None) -> None:
    data = Made(augment={"brightness": 0.5}, views=cycle)
    views = EpochViews(data.augment, 1, data.views)
    pixels, _, index = next(iter(data.train_loader(16, 0)))
    seen = [views.images(pixels, index, views.number(epoch)) for epoch in range(4)]
    same = [[torch.equal(one, other) for other in seen] for one in seen]
    assert same == [
        [i == j or (cycle is not None and (i - j) % cycle == 0) for j in range(4)] for i in range(4)
    ]


@pytest.mark.parametrize("cache", ["disk", "ram"])
def test_another_process_opens_a_store_by_its_file(cache: Any, tmp_path: Path, pool: Path) -> None:
    data = Made(unlabeled=str(pool), cache=cache, cache_dir=str(tmp_path / "cache"))
    images = data.split.unlabeled
    assert images is not None
    sent = pickle.dumps(images)
    assert len(sent) < 10_000
    assert b"pixels.npy" in sent
    assert torch.equal(pickle.loads(sent).pixels[:], images.pixels[:])


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (
            CIFAR10,
            [
                "cifar-10-batches-py",
                "data_batch_5",
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            ],
        ),
        (
            CIFAR100,
            [
                "cifar-100-python",
                "meta",
                "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            ],
        ),
        (MNIST, ["MNIST/raw", "t10k-labels-idx1-ubyte", "KD_DATA_DIR"]),
        (FashionMNIST, ["FashionMNIST/raw", "train-images-idx3-ubyte", "KD_DATA_DIR"]),
    ],
)
def test_without_files_and_network_one_message_says_what_to_do(
    source: type[DataModule], named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError) as caught:
        source(root=str(tmp_path / "new")).read()
    for each in [str(tmp_path / "new"), "could not be downloaded", *named]:
        assert each in str(caught.value)
    assert list(tmp_path.iterdir()) == [], "nothing may be left of the attempt"


def write_idx(folder: Path, part: str, count: int) -> None:
    """Write MNIST's files by their format: magic number, sizes, bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(count, dtype=np.uint8).repeat(28 * 28)
    sizes = np.array([count, 28, 28], ">i4").tobytes()
    (folder / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + pixels.tobytes())
    labels = (np.arange(count) % 10).astype(np.uint8)
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(
        b"\0\0\x08\x01" + sizes[:4] + labels.tobytes()
    )


@pytest.mark.parametrize(("source", "seventh"), [(MNIST, "7"), (FashionMNIST, "Sneaker")])
def test_mnist_like_files_are_read(source: type[IDX], seventh: str, tmp_path: Path) -> None:
    write_idx(tmp_path / source.folder, "train", 200)
    write_idx(tmp_path / source.folder, "t10k", 50)
    data = source(root=str(tmp_path))
    assert data.shape == (1, 28, 10)
    assert data.classes[7] == seventh  # as data.omit and teacher.classes call it
    assert (len(data.split.train), len(data.split.val), len(data.split.test)) == (180, 20, 50)
    assert data.split.test.pixels[torch.tensor([7])].unique().tolist() == [7]
    assert data.split.test.labels[7] == 7


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST/raw", "train", 200)
    write_idx(tmp_path / "MNIST/raw", "t10k", 50)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"MNIST in .*MNIST/raw is damaged"):
        MNIST(root=str(tmp_path)).read()


def command(*overrides: str, output: Path) -> Process:
    """Run `python -m kd.train` in a process of its own."""
    return Process("kd.train", "model=mlp_to_mlp", f"output_dir={output}", *overrides).wait()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short run with a folder, mixing, weights, a pool, and bad files."""
    import json

    root = tmp_path_factory.mktemp("run")
    for i in range(40):
        path = root / "set" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 6 * i, np.uint8)).save(path)
    (root / "set/cat/bad.png").write_text("hello")
    (root / "pool").mkdir()
    for i in range(30):
        Image.fromarray(np.full((8, 8, 3), 8 * i, np.uint8)).save(root / "pool" / f"{i}.png")
    done = command(
        *(
            "data=image_folder",
            f"data.root={root / 'set'}",
            f"data.unlabeled={root / 'pool'}",
            "data.image_size=8",
        ),
        *(
            "data/augment=strong",
            "data.class_weights=balanced",
            "data.on_bad_image=skip",
            "trainer=smoke",
        ),
        *("batch_size=8", "teacher.batch_size=8"),
        output=root / "out",
    )
    assert done.returncode == 0, done.stderr
    folder = next((root / "out" / "runs").iterdir())
    return {
        "folder": folder,
        "report": json.loads((folder / "report.json").read_text()),
        "output": root / "out",
    }


@pytest.mark.slow
def test_the_report_has_skipped_files_and_metrics_of_two_classes(run: dict[str, Any]) -> None:
    data = run["report"]["data"]
    assert [Path(each["file"]).name for each in data["skipped"]] == ["bad.png"]
    assert data["skipped"][0]["reason"] == "not an image, or of an unknown kind"
    assert data["unlabeled"] == 30
    written = (run["folder"] / "report.md").read_text()
    assert "bad.png: not an image" in written
    assert "and 30 without labels" in written
    for model in run["report"]["models"]:
        assert {"sensitivity", "specificity", "auroc", "balanced_accuracy"} <= set(model["test"])


@pytest.mark.slow
def test_views_are_in_tensorboard(run: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run["folder"] / "tensorboard")).Reload()
    (picture,) = events.Images("views")
    assert picture.width > 8 * 24


@pytest.mark.slow
def test_decoded_files_lie_in_the_output_folder(run: dict[str, Any]) -> None:
    assert len([path for path in (run["output"] / "cache").iterdir() if path.is_dir()]) == 2


class Fixed(nn.Module):
    """Logits that are a plain function of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


def test_validation_measures_all_images() -> None:
    """As two ranks do, see `test_ranks.py`."""
    data = Digits(val_fraction=0.301)
    distiller = Distiller(
        Fixed(),
        Objective(read_loss({"terms": {}}), data.shape),
        configure,
        views=EpochViews(Augment(), 0),
        normalization=data.statistics,
        seed=0,
        reference=torch.arange(len(data.split.val)) % 10,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
    )
    (found,) = trainer.validate(distiller, data.val_loader(batch_size=50), verbose=False)
    logits = Fixed()(normalize(to_unit(data.split.val.pixels[:]), *data.statistics))
    assert found["val/acc"] == pytest.approx(
        float((logits.argmax(1) == data.split.val.labels).float().mean()), abs=1e-6
    )
    assert found.keys() == {"val/loss", "val/acc", "val/agreement"}


def configure(net: Any, steps: int, extra: Any) -> tuple[torch.optim.Optimizer, None]:
    return torch.optim.SGD(net.parameters(), 0.1), None


needs_cifar10 = pytest.mark.skipif(
    not (DATA / "cifar-10-batches-py").is_dir(),
    reason="no cifar-10-batches-py in KD_DATA_DIR (default: data)",
)
needs_xrays = pytest.mark.skipif(
    not (DATA / "chest_xray" / "train").is_dir(),
    reason="no chest_xray in KD_DATA_DIR (default: data)",
)


@needs_cifar10
def test_cifar10_is_read() -> None:
    split = CIFAR10(root=str(DATA)).split
    assert (len(split.train), len(split.val), len(split.test)) == (45_000, 5_000, 10_000)
    assert split.classes[0] == "airplane"
    assert torch.bincount(split.test.labels).tolist() == [1000] * 10


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> ChestXRay:
    return ChestXRay(
        root=str(DATA), image_size=32, channels=1, cache_dir=str(tmp_path_factory.mktemp("cache"))
    )


@needs_xrays
@pytest.mark.slow
def test_xrays_are_split_by_patient(xrays: ChestXRay) -> None:
    split = xrays.split
    assert split.classes == ("NORMAL", "PNEUMONIA")
    assert len(split.train) + len(split.val) == 5216 + 16
    assert torch.bincount(split.test.labels).tolist() == [234, 390]
    assert 0.08 < len(split.val) / 5232 < 0.12
    share = [float(part.labels.float().mean()) for part in (split.train, split.val)]
    assert share == pytest.approx([(3875 + 8) / 5232] * 2, abs=0.03)
    train, val = set(split.train.groups or ()), set(split.val.groups or ())
    assert not train & val
    assert sum(bool(re.fullmatch(r"person\d+", group)) for group in train | val) > 1600


@needs_xrays
def test_the_test_part_numbers_its_patients_anew() -> None:
    """A patient number of test may recur in train for another kind: no image of one patient is in
    both.
    """
    patients = {
        part: {
            m[0]
            for f in (DATA / "chest_xray" / part).rglob("*")
            if (m := re.match(r"person\d+_[a-z]+", f.name))
        }
        for part in ("train", "val", "test")
    }
    assert min(map(len, patients.values())) > 0
    assert not patients["test"] & (patients["train"] | patients["val"])


@needs_xrays
@pytest.mark.slow
def test_xrays_open_in_no_time_again(xrays: ChestXRay) -> None:
    from timeit import timeit

    wanted = xrays.key()
    again = ChestXRay(root=str(DATA), image_size=32, channels=1, cache_dir=str(xrays.cache.folder))
    assert timeit(lambda: again.split, number=1) < 3
    assert again.key() == wanted


MEASURE = """
import sys
from kd.data.chest_xray import ChestXRay
from kd.data.views import make_views
crops = {"crop_padding": 4}
data = ChestXRay(sys.argv[1], image_size=224, cache="disk", cache_dir=sys.argv[2], augment=crops)
data.key()
for pixels, _, index in data.train_loader(64, 0):
    make_views(pixels, index, seed=0, view=0, augment=data.augment)
"""


def peak_memory(line: list[str]) -> float:
    """Return the peak anonymous memory of a process, in GB."""
    peak = 0.0
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):  # it has just ended
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = max(
                peak,
                int(next(each.split()[1] for each in status if each.startswith("RssAnon"))) / 1e6,
            )
        time.sleep(0.05)
    assert process.returncode == 0
    return peak


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the kernel says here how much memory is in use"
)


@needs_xrays
@needs_proc
@pytest.mark.slow
def test_a_set_on_disk_stays_out_of_memory(tmp_path: Path) -> None:
    # The array takes 0.88.
    assert peak_memory([sys.executable, "-c", MEASURE, str(DATA), str(tmp_path)]) < 1.0


@needs_xrays
@needs_proc
@pytest.mark.slow
def test_a_run_over_a_set_on_disk_stays_out_of_memory(tmp_path: Path) -> None:
    """Nets so small that their activations for 16 images hardly count; validation and test are
    whole.
    """
    line = [
        sys.executable,
        "-m",
        "kd.train",
        "data=chest_xray",
        f"data.root={DATA.resolve()}",
        "data.cache=disk",
    ]
    line += ["trainer=smoke", "teacher=mlp", "teacher.net.hidden=[16]", "student=cnn_shallow"]
    line += ["batch_size=16", "teacher.batch_size=16", f"output_dir={tmp_path}"]
    assert peak_memory(line) < 1.5
