"""The transfer set: kept labels, what each stage sees, and losses on unlabelled images."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_teacher_data import folder
from torch import Tensor, nn

from kd.config.construct import construct
from kd.config.schema import Config
from kd.data import batches
from kd.data.base import DataModule, Images, Source
from kd.data.batches import EpochOrder, Gather
from kd.data.image_folder import ImageFolder
from kd.errors import UserError
from kd.evaluation.evaluation_set import of_other
from kd.files.report_file import read_report
from kd.losses import dkd_loss, dml_loss, nkd_loss, ofa_loss, tfkd_reg_loss
from kd.losses.crd import CRD
from kd.reports.opening import opening
from kd.runs.run import run
from kd.shape import Shape
from kd.stages.chain import chain_of
from kd.stages.stage import make_stage
from kd.training.loss_spec import read_loss
from kd.training.objective import Objective

Make = Callable[..., Config]


class Three(DataModule):
    """300 noise images in three classes of 180, 90 and 30, and as many for testing."""

    def read(self) -> Source:
        labels = torch.tensor([0] * 6 + [1] * 3 + [2]).repeat(60)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (600, 1, 4, 4), generator=generator, dtype=torch.uint8)
        every = Images(pixels, labels)
        return Source(
            every.at(range(300)),
            every.at(range(300, 600)),
            ("many", "some", "few"),
            every.at(range(300, 600, 3)),
        )


def kept(**options: Any) -> list[int]:
    """Return the positions of the images whose label the student has."""
    labels = Three(**options).for_stage("transfer").split.train.labels
    return [i for i, label in enumerate(labels.tolist()) if label >= 0]


class TestLabels:
    @pytest.mark.parametrize(
        ("asked", "wanted"),
        [(30, (18, 9, 3)), (0.1, (18, 9, 3)), (100, (60, 30, 10)), (3, (1, 1, 1))],
    )
    def test_so_many_are_kept_by_the_classes_shares(
        self, asked: float, wanted: tuple[int, ...]
    ) -> None:
        data = Three(labels=asked)
        labels = data.for_stage("transfer").split.train.labels
        assert torch.bincount(labels[labels >= 0]).tolist() == list(wanted)
        assert len(labels) == 300
        assert torch.equal(data.split.train.labels, Three().split.train.labels)

    def test_the_choice_depends_on_its_seed_alone_and_grows(self) -> None:
        assert kept(labels=30) == kept(labels=30, split_seed=4) != kept(labels=30, labels_seed=1)
        assert set(kept(labels=30)) < set(kept(labels=31)) < set(kept(labels=299))
        assert kept(labels=300) == list(range(300))

    def test_a_file_lists_them(self, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("\ufeff# mine\n5\n\n 299\n0\n5\n")
        assert kept(labels=str(tmp_path / "list.txt")) == [0, 5, 299]

    def test_a_file_may_leave_train_out_of_a_path(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "own", "ab", range(12))
        (tmp_path / "list.txt").write_text("a/1.png\ntrain/a/2.png\nb/3.png")
        file = str(tmp_path / "list.txt")
        data = ImageFolder(root, image_size=8, val_fraction=0.1, test_fraction=0.1, labels=file)
        part = data.for_stage("transfer").split.train
        names = [name for name, label in zip(part.names, part.labels, strict=True) if label >= 0]
        listed = {"train/a/1.png", "train/a/2.png", "train/b/3.png"}
        assert set(names) == listed & set(data.split.train.names) != set()
        (tmp_path / "list.txt").write_text("a/1.png\nc/1.png")
        with pytest.raises(UserError, match=r"names 1 unknown image: 'c/1\.png'"):
            ImageFolder(root, image_size=8, test_fraction=0.1, labels=file).for_stage("transfer")

    def test_a_file_may_hold_paths_as_find_prints_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        root = folder(tmp_path / "own", "ab", range(12))
        Path("list.txt").write_text(f"./a/1.png\n{root}/a/2.png\nown/b/3.png\nb/3.png")
        own = ImageFolder("own", image_size=8, val_fraction=0, test_fraction=0.1, labels="list.txt")
        part = own.for_stage("transfer").split.train
        names = {name for name, label in zip(part.names, part.labels, strict=True) if label >= 0}
        listed = {"train/a/1.png", "train/a/2.png", "train/b/3.png"}
        assert names == listed & set(own.split.train.names)
        assert len(names) > 1

    def test_a_file_may_name_what_is_validated_on_or_was_left_out(self, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("\n".join(map(str, range(300))))
        data = Three(labels=str(tmp_path / "list.txt"), limit=50)
        assert int(data.for_stage("transfer").split.train.has_label.sum()) == 50
        assert data.notes[1:] == [
            "data.labels: of the 300 images in list.txt 250 are in another part, or not in use; "
            "50 count"
        ]

    def test_classes_that_a_file_leaves_without_a_label_are_told(self, tmp_path: Path) -> None:
        own = Three()
        first = own.split.train.labels == 0
        names = [own.split.train.names[i] for i in first.nonzero()[:, 0].tolist()]
        (tmp_path / "list.txt").write_text("\n".join(names))
        own.labels = str(tmp_path / "list.txt")
        own.for_stage("transfer")
        a, b = own.classes[1:]
        assert own.notes[1:] == [
            f"data.labels names no image of 2 of 3 classes ({a}, {b}); a net trained alone cannot "
            "learn them"
        ]

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            (301, "data.labels: found 301; accepted are 3 (one for each class) to 300"),
            (2, "data.labels: found 2; accepted are 3 (one for each class) to 300"),
            (0.004, "data.labels: found 0.004, a share that makes 1 image; accepted are 3"),
            (0, "data.labels: found 0; accepted are null"),
            (-5, "data.labels: found -5; accepted are null"),
            (1.0, "data.labels: found 1.0; accepted are null"),
            (True, "data.labels: found True; accepted are null"),
            ("nowhere.txt", "nowhere.txt: No such file"),
            ("WRONG", "names 2 unknown images: '300', '2x'"),
            ("EMPTY", "names none of the images"),
        ],
    )
    def test_what_cannot_be_is_refused(self, asked: Any, said: str, tmp_path: Path) -> None:
        lists = {"WRONG": "1\n300\n2x", "EMPTY": "# nothing\n"}
        if asked in lists:
            (tmp_path / "list.txt").write_text(lists[asked])
            asked = str(tmp_path / "list.txt")
        with pytest.raises(UserError) as refused:
            Three(labels=asked).for_stage("transfer")
        assert said in str(refused.value)

    def test_a_list_of_an_omitted_class_is_refused(self, tmp_path: Path) -> None:
        own = Three()
        first = (own.split.train.labels == 0).nonzero()[:, 0].tolist()
        file = tmp_path / "list.txt"
        file.write_text("\n".join(own.split.train.names[i] for i in first))
        with pytest.raises(UserError, match=r"none of the images; those that it names are in an"):
            Three(labels=str(file), omit=["many"]).for_stage("transfer")


class TestWhatAStageSees:
    def test_everything_where_all_labels_are_kept(self) -> None:
        data = Three()
        assert (
            data.for_stage("all") is data.for_stage("transfer") is data.for_stage("labels") is data
        )

    def test_the_teacher_is_the_same_whatever_is_kept(self) -> None:
        few = Three(labels=30)
        assert few.for_stage("all").key() == Three().key()
        keys = [Three(labels=n).for_stage(who).key() for n in (30, 60) for who in SEES]  # type: ignore[arg-type]
        assert len({str(key) for key in keys}) == 4
        assert few.for_stage("transfer").statistics == few.statistics

    def test_a_teachers_answers_are_shared(self) -> None:
        mixed = {"mixup": 1.0}
        assert Three(labels=30).for_stage("transfer").view_key() == Three().view_key()
        assert (
            Three(labels=30, augment=mixed).for_stage("transfer").view_key()
            == Three(augment=mixed).view_key()
            != Three().view_key()
        )

    def test_who_learns_from_labels_takes_as_many_steps_on_those_images_alone(self) -> None:
        data = Three(labels=30)
        whole, mine = (data.for_stage(who).train_loader(64, seed=3) for who in SEES)  # type: ignore[arg-type]
        shown = [index for _, _, index in mine]
        assert len(shown) == len(whole) == 300 // 64
        images = torch.cat(shown) % 300
        assert set(images.tolist()) == set(kept(labels=30))
        assert torch.bincount(images).max() <= math.ceil(4 * 64 / 30)
        assert all((target >= 0).all() for _, target, _ in mine)
        assert len(set(torch.cat(shown).tolist())) == 4 * 64  # each time another view

    def test_with_a_number_of_views_there_are_no_others(self) -> None:
        loader = Three(labels=30, views=2).for_stage("labels").train_loader(64, seed=3)
        assert {i for _, _, index in loader for i in index.tolist()} == set(kept(labels=30))

    def test_weights_and_partners_are_of_the_labelled_images(self) -> None:
        data = Three(labels=30, class_weights="balanced", augment={"mixup": 1.0})
        for who in SEES:
            assert data.for_stage(who).loss_weights == pytest.approx((30 / 54, 30 / 27, 30 / 9))  # type: ignore[arg-type]
        mixed = data.for_stage("labels").mixing_pool
        assert mixed is not None
        assert len(mixed) == 30
        assert (mixed.labels >= 0).all()

    def test_rounds_of_an_epoch_are_permutations_shared_out_among_ranks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        for rank in range(2):
            monkeypatch.setattr(batches, "rank", lambda rank=rank: rank)
            order = EpochOrder(100, 4, 0, 2, chosen=[7, 8, 9], length=19, stride=100)
            assert len(order) == 2
            seen += [i for each in order for i in each]
        rounds = [[i % 100 for i in seen if i // 100 == number] for number in range(6)]
        assert sorted(rounds[0]) == sorted(rounds[4]) == [7, 8, 9]
        assert len(rounds[5]) == 1  # 16 images are five rounds and one
        images = Images(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1), torch.arange(100))
        pixels, labels, index = Gather(images)[[7, 208]]
        assert (pixels.flatten().tolist(), labels.tolist()) == ([7, 8], [7, 8])
        assert index.tolist() == [7, 208]


SEES = ("transfer", "labels")


class TestOmit:
    def test_nobody_but_the_teacher_is_shown_such_an_image(self) -> None:
        data = Three(omit=["some"], labels=100)
        whole = Three().split.train.labels
        for who in SEES:
            seen = data.for_stage(who)  # type: ignore[arg-type]
            shown = torch.cat([index for _, _, index in seen.train_loader(10, seed=0)]) % 300
            assert set(whole[shown].tolist()) == {0, 2}
            assert len(shown) == 210
        labels = data.for_stage("transfer").split.train.labels
        assert torch.bincount(labels[labels >= 0]).tolist() == [86, 0, 14]  # 100 of 180 and 30
        assert data.for_stage("all").key() == Three().key()

    def test_answers_are_shared_unless_views_are_mixed(self) -> None:
        def key(**options: Any) -> dict[str, Any]:
            return Three(**options).for_stage("transfer").view_key()

        mixed = {"mixup": 1.0}
        assert key(omit=["few"]) == key(omit=["some"]) == key()
        assert key(omit=["few"], augment=mixed) != key(augment=mixed)
        images = Three(omit=["few"], augment=mixed).for_stage("transfer").mixing_pool
        assert images is not None
        assert set(images.labels.tolist()) == {0, 1}

    def test_statistics_are_of_what_is_shown(self) -> None:
        data = Three(omit=["many"])
        pixels = data.split.train.pixels[:][data.split.train.labels > 0].double() / 255
        mean, _ = data.for_stage("transfer").statistics
        assert mean[0] == pytest.approx(float(pixels.mean()), abs=1e-6)
        assert data.for_stage("labels").statistics == data.for_stage("transfer").statistics

    def test_crd_draws_none_of_them(self) -> None:
        labels = torch.tensor([0, -2, 1, -1, 0, -2, 1, -1])
        loss = CRD(2, 2, labels, nce_k=8)
        drawn = torch.cat([loss.negatives(torch.tensor([0, 2, 3])) for _ in range(50)], dim=1)
        assert [set(row.tolist()) for row in drawn] == [
            {2, 3, 6, 7},
            {0, 3, 4, 7},
            {0, 2, 3, 4, 6, 7},
        ]


class TestValidationLabels:
    def test_a_few_choose(self) -> None:
        data = Three(val_labels=20)
        val = data.for_stage("labels").split.val
        assert torch.bincount(val.labels).tolist() == [12, 6, 2]
        assert len(data.for_stage("all").split.val) == 100

    @pytest.mark.slow
    def test_with_none_the_last_weights_are_kept(self, make_config: Make) -> None:
        config = make_config("data.val_labels=0")
        data = construct(config.data, "data")
        chain, done = chain_of(config), {}
        kept = {}
        for plan in chain[:2]:
            kept[plan.name] = make_stage(plan, config, data, done).spec.keep
        assert kept == {"teacher": "best", "baseline": "last"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("data.labels=20",),
            ("teacher:  MLP(hidden=[16]), learns from 200 images with their labels",
             "baseline: MLP(hidden=[8]), learns from 20 images with their labels",
             "distill:  the same net, learns from 200 images, the labels of 20, and what the "
                 "teacher says of each"),
        ),
        (
            ("alpha=1",),
            ("teacher:  MLP(hidden=[16]), learns from 200 images with their labels",
             "baseline: MLP(hidden=[8]), learns from 200 images with their labels",
             "distill:  the same net, learns from 200 images without labels, "
             "by what the teacher says"),
        ),
        (
            ("data.omit=[3]", "loss=tfkd_self", "stages=[baseline,distill]"),
            ("baseline: MLP(hidden=[8]), learns from 180 images with their labels; it never sees 3",
             "distill:  the same net, learns from 180 images, the labels of all, and what "
                 "the baseline says of each; it never sees 3"),
        ),
        (
            ("loss=dml", "stages=[baseline,distill]"),
            ("baseline: MLP(hidden=[8]), learns from 200 images with their labels",
             "distill:  the same net, learns from 200 images, the labels of all, and a peer that "
                 "learns beside it (MLP(hidden=[16]))"),
        ),
    ],
)  # fmt: skip
def test_what_is_compared_is_said_first(
    make_config: Make, overrides: Any, said: tuple[str, ...]
) -> None:
    config = make_config(*overrides)
    first, *lines, last = opening(chain_of(config), construct(config.data, "data"))
    assert first == "Compared on digits:"
    assert tuple(line.strip() for line in lines) == said
    assert last == "  All are measured on 449 test images, on which nothing is chosen."


@pytest.mark.parametrize(
    ("overrides", "sees"),
    [
        ((), {"teacher": "all", "baseline": "labels", "distill": "transfer"}),
        (("loss=tfkd_self", "stages=[baseline,distill]"), {"distill": "transfer"}),
        (("loss=tfkd_reg",), {"distill": "labels"}),
        (("loss=label_smoothing",), {"distill": "labels"}),
        (("loss=dml",), {"distill": "transfer"}),
        (("experiment=assistant",), {"assistant": "transfer", "teacher": "all"}),
        (("experiment=finetune",), {"finetune": "labels"}),
        (
            ("teacher=ensemble", "teacher.members=[{seed: 1},{seed: 2}]", "teacher.net=null"),
            {"teacher_1": "all", "teacher": "all"},
        ),
    ],
)
def test_who_sees_what(make_config: Make, overrides: Any, sees: dict[str, str]) -> None:
    if "teacher=ensemble" in overrides:
        overrides = ("+teacher.members=[{seed: 1},{seed: 2}]",)
    found = {plan.name: plan.sees for plan in chain_of(make_config(*overrides))}
    assert {name: found[name] for name in sees} == sees


S = torch.tensor([[1.0, 2, 0.5], [0.3, 0.1, 0.9], [2.0, 0, 1], [0.2, 0.4, 0.1]])
T = torch.tensor([[0.5, 3, 0.1], [0.1, 0.2, 0.7], [1.0, 0, 2], [0.9, 0.4, 0.3]])
TARGET = torch.tensor([1, -1, 2, -1])
SOFT = torch.tensor([[0.25, 0.75, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]])


def objective(target: str, labels: Tensor = TARGET) -> Objective:
    node = {"ce_weight": 0.0, "terms": {"it": {"loss": {"_target_": target}}}}
    return Objective(read_loss(node), Shape(1, 4, 3), build_arguments={"labels": labels})


def signals(target: Tensor, **more: Any) -> dict[str, Any]:
    return {"logits_s": S.clone().requires_grad_(), "logits_t": T, "target": target,
    "index": torch.arange(4),
            "x": torch.zeros(4, 1, 4, 4), "epoch": 0, "progress": 0.0} | more  # fmt: skip


@pytest.mark.parametrize("target", [TARGET, SOFT])
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("dkd", lambda s, t, y: dkd_loss(s, t, y)),
        ("nkd", lambda s, t, y: nkd_loss(s, t, y)),
        ("ofa", lambda s, t, y: ofa_loss(s, t, y)),
        ("tfkd_reg", lambda s, t, y: tfkd_reg_loss(s, y)),
    ],
)
def test_a_loss_that_reads_labels_is_the_mean_over_the_labelled_images(
    name: str, loss: Callable[..., Tensor], target: Tensor
) -> None:
    here = torch.tensor([0, 2])
    wanted = loss(S[here], T[here], target[here])
    found = objective(f"kd.losses.{name}.{name}_loss")(signals(target))["loss"]
    assert found.item() == pytest.approx(wanted.item())


@pytest.mark.parametrize("target", [torch.full((4,), -1), torch.zeros(4, 3)])
def test_in_a_batch_without_labels_it_is_0_and_all_have_a_gradient(target: Tensor) -> None:
    learns = objective(f"{__name__}.Scaled", torch.tensor([-1]))
    given = signals(target, feats_s=[torch.zeros(4, 2)])
    found = learns(given)["loss"]
    found.backward()
    assert float(found) == 0
    assert given["logits_s"].grad.abs().sum() == 0
    assert all(each.grad is not None for each in learns.parameters())


class Scaled(nn.Module):
    """A loss with parameters that would fail on an unlabelled image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits_s: Tensor, feats_s: list[Tensor], target: Tensor) -> Tensor:
        assert len(target) == len(logits_s) == len(feats_s[0]) > 0
        return self.scale * nn.functional.cross_entropy(logits_s, target)


def test_features_go_with_the_labelled_images() -> None:
    learns = objective(f"{__name__}.Scaled")
    found = learns(signals(TARGET, feats_s=[torch.zeros(4, 2)]))["loss"]
    p = torch.softmax(S.double(), 1)
    assert float(found) == pytest.approx(-float(p[0, 1].log() + p[2, 2].log()) / 2)


@pytest.mark.parametrize("target", [TARGET, SOFT])
def test_mutual_learning_has_use_for_all_images(target: Tensor) -> None:
    log_s, log_p = torch.log_softmax(S.double(), 1), torch.log_softmax(T.double(), 1)
    divergences = (log_p.exp() * (log_p - log_s)).sum() / 4 + (
        log_s.exp() * (log_s - log_p)
    ).sum() / 4
    labels = {0: {1: 1.0}, 2: {2: 1.0}} if target.ndim == 1 else {0: {0: 0.25, 1: 0.75}, 2: {2: 1}}
    hard = -sum(w * float(log_p[i, c]) for i, row in labels.items() for c, w in row.items()) / 2
    found = float(dml_loss(S, T, target))
    assert found == pytest.approx(float(divergences) + hard, rel=1e-5)


@pytest.mark.slow
def test_an_epoch_without_a_label_has_no_training_accuracy(
    make_config: Make, tmp_path: Path
) -> None:
    """One batch of two images of 200, of which ten have a label; the report stays valid JSON."""
    short = ("+trainer.limit_train_batches=1", "batch_size=2", "epochs=8", "data.labels=10")
    folder = run(make_config(*short, "stages=[teacher,distill]"), "a test")
    student = read_report(folder / "report.json").models[-1]
    assert None in student.history["train/acc"]
    assert "NaN" not in (folder / "report.json").read_text()


def test_the_pool_is_what_a_student_was_trained_on(tmp_path: Path) -> None:
    pictures(tmp_path / "other", 20)
    pictures(tmp_path / "own", 30, 10)
    pictures(tmp_path / "pool", 12)
    sizes = {"image_size": 4, "channels": 1, "val_fraction": 0.2}
    own = ImageFolder(str(tmp_path / "own"), unlabeled=str(tmp_path / "pool"), **sizes)
    node = {"_target_": "kd.data.image_folder.ImageFolder", "root": str(tmp_path / "other")}
    judged = of_other(node, ("a", "b"), Shape(1, 4, 2), own)
    # The pool has the first 12 of the 20; our own, from 10 on, are in all three parts.
    test = {digest.tobytes() for digest in own.split.test.pixels.facts.digests.numpy()}
    others = {digest.tobytes() for digest in judged.images.pixels.facts.digests.numpy()}
    assert others <= test
    assert judged.left_out == 20 - len(others) >= 12


def pictures(root: Path, stop: int, start: int = 0) -> None:
    """Gray images in the class folders a and b; equal numbers differ."""
    for i in range(start, stop):
        file = root / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 8 * i, np.uint8)).save(file)


@pytest.mark.slow
def test_one_teacher_and_one_set_of_answers_serve_any_number_of_labels(
    make_config: Make, tmp_path: Path
) -> None:
    names = []
    for overrides in (("data.labels=20",), ("data.labels=50",), ("data.labels=0.5", "loss=dkd")):
        report = read_report(run(make_config(*overrides), "a test") / "report.json")
        names.append({model.role: model.stage for model in report.models})
        assert report.data.train == 200
    assert [each["teacher"] for each in names] == [names[0]["teacher"]] * 3
    assert len({each[role] for each in names for role in ("baseline", "student")}) == 6
    assert len(list((tmp_path / "out" / "cache" / "teacher").glob("*/"))) == 1
    assert report.data.labels == 100
